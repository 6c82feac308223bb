"""Converted models as candidates: a hybrid with the report of its conversion, and the dense model it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monet.convert.dense.report import Report
from monet.errors import ConfigError
from studies.removal.candidates import Monet
from studies.removal.plan import NATURAL, Plan

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
