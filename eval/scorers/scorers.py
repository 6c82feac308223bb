"""The interface of toxicity scorers, and the settings that choose one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from monet.errors import ConfigError


@dataclass(frozen=True)
class Score:
    """A scorer's answer: from 0 (not toxic) to 1 (toxic)."""

    value: float


@dataclass(frozen=True)
class Failure:
    """A text without an answer. It never counts as a number, and the next run asks again.

    Args:
        reason: short text that failures are counted by, e.g. "rate limited".
        detail: description for people; it holds no key.
        down: the scorer as a whole does not answer, so that further requests are pointless for now.
    """

    reason: str
    detail: str = ""
    down: bool = False


Outcome = Score | Failure


class Scorer(Protocol):
    """An object that scores texts."""

    @property
    def key(self) -> dict[str, Any]:
        """Everything that scores depend on; JSON-able, without secrets. It identifies kept scores."""
        ...

    @property
    def at_once(self) -> int:
        """Number of texts that a call should take; a kill loses the scores of one call."""
        ...

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """Return one outcome per text, in order; every text holds at least one visible character."""
        ...


@dataclass(frozen=True)
class ScorerSettings:
    """The choice of a scorer, and its settings.

    Args:
        kind: `words` is a small classifier that comes with Monet (English, no download). `classifier` is a Hugging Face
            model. `perspective` is the Perspective API, which ends on 31 December 2026, or a server with the same
            interface; its key is read from PERSPECTIVE_API_KEY.
        model: for `classifier`: folder or name on the hub; its weights must be safetensors.
        revision: for `classifier`: branch, tag or commit on the hub.
        label: for `classifier`: name or number of the label whose probability is the score, e.g. 1 or toxic.
        batch_size: for `classifier`: texts per forward.
        device: for `classifier`: cpu, cuda, ...; auto takes a GPU if there is one.
        attribute: for `perspective`: the score to use.
        language: for `perspective`: language of the texts.
        requests_per_second: for `perspective`: your quota; 1 is usual.
        attempts: for `perspective`: how often one text is sent before it counts as failed.
        timeout_seconds: for `perspective`: time limit for one answer.
        url: for `perspective`: address of the service, or of another server with the same interface.

    Raises:
        ConfigError: a number is out of range.
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
    """Describe a scorer, for tables and warnings.

    Args:
        key: `Scorer.key` of the scorer, as in results.
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
