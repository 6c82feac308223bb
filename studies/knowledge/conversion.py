"""Converted models as candidates: a hybrid with the report of its conversion, and the dense model it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monet.convert.dense.report import Report
from monet.errors import ConfigError
from studies.removal.candidates import Monet
from studies.removal.plan import NATURAL, Plan
from studies.transcoders.candidate import TranscoderLatents

REST = "subject"


class Converted(Monet):
    """A folder of `monet convert`; it loses experts of its Monet layers."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        super().__init__(folder, plan)
        self.report = Report.load(folder)


def check_same_layers(models: Sequence[Converted]) -> None:
    """Refuse conversions that differ in more than their seed.

    Raises:
        ConfigError: two conversions have other layers, tokens or another dense model.
    """
    first = models[0]
    for other in models[1:]:
        for name in ("model", "layers", "tokens", "distil_tokens"):
            one, two = getattr(first.report, name), getattr(other.report, name)
            if one != two:
                raise ConfigError(
                    f"{first.folder} has {name} {one}, but {other.folder} has {two}; give conversions that differ only "
                    "in their seed, or use --by_layers"
                )


def check_same_model(models: Sequence[Converted], transcoders: Sequence[TranscoderLatents]) -> None:
    """Refuse transcoders that differ in more than their seed, or of another dense model than the conversions'.

    Raises:
        ConfigError: names what differs.
    """
    wanted = models[0].report.settings.get("model_fingerprint")
    for one in transcoders:
        trained, first = one.trained_transcoders, transcoders[0].trained_transcoders
        if wanted is not None and trained.model_fingerprint != wanted:
            raise ConfigError(f"{one.folder} imitates another dense model than {models[0].folder} was converted from")
        if (trained.shape, trained.tokens) != (first.shape, first.tokens):
            raise ConfigError(
                f"{one.folder} has {trained.shape} and {trained.tokens} tokens, but {transcoders[0].folder} has "
                f"{first.shape} and {first.tokens}; give transcoders that differ only in their seed"
            )


def families_of(given: Sequence[str], domains: Sequence[str]) -> dict[str, str]:
    """The family of each domain.

    Args:
        given: words such as "programming=code,shell".
        domains: all domains. Those not given are "natural" if they are a known language, else "subject".

    Raises:
        ConfigError: a word has no "=", or names a domain that the text does not have, or names one twice.
    """
    found: dict[str, str] = {}
    for word in given:
        family, equals, names = word.partition("=")
        if not equals or not family or not names:
            raise ConfigError(f"families {word!r}: write FAMILY=DOMAIN,DOMAIN")
        for name in names.split(","):
            if name not in domains:
                raise ConfigError(f"families {word!r}: the text has no domain {name!r}; it has {', '.join(domains)}")
            if name in found:
                raise ConfigError(f"families {word!r}: {name!r} has the family {found[name]} already")
            found[name] = family
    return {name: found.get(name, "natural" if name in NATURAL else REST) for name in domains}
