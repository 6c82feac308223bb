"""How toxic a text is: one interface, and the settings that choose what is behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from monet.errors import ConfigError


@dataclass(frozen=True)
class Score:
    """A scorer's answer: 0 not toxic to 1 toxic."""

    value: float


@dataclass(frozen=True)
class Failure:
    """No answer; never counted as a number, asked again by the next run.

    Args:
        reason: few words that failures are counted by, e.g. "rate limited".
        detail: what happened, for people; holds no key.
        down: the scorer as a whole does not answer, so that asking on is pointless for now.
    """

    reason: str
    detail: str = ""
    down: bool = False


Outcome = Score | Failure


class Scorer(Protocol):
    """What scores texts."""

    @property
    def key(self) -> dict[str, Any]:
        """Everything its scores depend on; JSON-able, without secrets. Kept scores are found again by it."""
        ...

    @property
    def at_once(self) -> int:
        """Texts that a call should take: what is lost if it is killed."""
        ...

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome a text, in their order; a text holds at least one visible character."""
        ...


@dataclass(frozen=True)
class ScorerSettings:
    """Which scorer, and how it is asked.

    Args:
        kind: `words` is a small classifier that comes with Monet (English, no download); `classifier` is a Hugging
            Face model; `perspective` is the Perspective API, which ends on 31 December 2026, or a server that answers
            as it does. Its key is taken from PERSPECTIVE_API_KEY.
        model: of `classifier`: folder or hub name; its weights must be safetensors.
        revision: of `classifier`: branch, tag or commit on the hub.
        label: of `classifier`: name or number of the label whose probability is the score, e.g. 1 or toxic.
        batch_size: of `classifier`: texts a forward.
        device: of `classifier`: cpu, cuda, ...; auto takes a GPU if there is one.
        attribute: of `perspective`: which of its scores.
        language: of `perspective`: of the texts.
        requests_per_second: of `perspective`: your quota; 1 is usual.
        attempts: of `perspective`: how often one text is sent before it counts as failed.
        timeout_seconds: of `perspective`: for one answer.
        url: of `perspective`: address of the service or of another server that answers as it does.

    Raises:
        ConfigError: a number out of range.
    """

    kind: Literal["words", "classifier", "perspective"] = "words"
    model: str | None = None
    revision: str | None = None
    label: str | int | None = None
    batch_size: int = 32
    device: str = "auto"
    attribute: str = "TOXICITY"
    language: str = "en"
    requests_per_second: float = 1.0
    attempts: int = 6
    timeout_seconds: float = 30.0
    url: str = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"

    def __post_init__(self) -> None:
        for name in ("batch_size", "requests_per_second", "attempts", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"scorer.{name} must be more than 0, got {getattr(self, name)}")


def describe(key: Mapping[str, Any]) -> str:
    """A scorer in words, for tables and warnings.

    Args:
        key: its `Scorer.key`, as results hold it.
    """
    kind = key.get("kind")
    if kind == "words":
        return "words, the classifier that comes with Monet"
    if kind == "classifier":
        return f"{key.get('name')} (label {key.get('label')})"
    if kind == "perspective":
        url = key.get("url", ScorerSettings.url)
        where = "the Perspective API" if url == ScorerSettings.url else f"the server at {url}"
        return f"{where} ({key.get('attribute')})"
    return str(kind)
