"""Results of the comparison of starts as typed data: docs/warm-start.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.eval.core.results import Result


@dataclass(frozen=True)
class Point:
    """A validation: tokens read before it, and the mean loss over the domains in nats per token."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Arm:
    """Runs that begin in one way and differ only in their seed.

    Args:
        name: "random", "rest" or "pieces".
        runs: names of the runs.
        curve: validations, mean over the runs.
        final: loss at the end of each run.
    """

    name: str
    runs: list[str]
    curve: list[Point]
    final: list[float]


@dataclass(frozen=True)
class Level:
    """Tokens at which the arms first have a loss.

    Args:
        loss: the loss of the random start after `share` of its tokens.
        share: that share.
        tokens: by arm; None if the arm never has it.
        is_bound: arms that have it at their first validation already, so the number is an upper bound.
    """

    loss: float
    share: float
    tokens: dict[str, int | None]
    is_bound: list[str]


@dataclass(frozen=True)
class WarmStartResult(Result):
    """How many tokens other starts save against a random start.

    Args:
        arms: the random start first.
        levels: losses of the random start, and when the others reach them.
        twin_tokens: tokens that the dense twin had read, whose weights the other starts take; None if it is unknown.
        settings: what all runs share.
        provenance: versions and date.
    """

    FORMAT: ClassVar[str] = "monet-warm-start/1"
    COMMAND: ClassVar[str] = "python -m studies.warm_start"

    arms: list[Arm]
    levels: list[Level]
    twin_tokens: int | None
    settings: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def sentence(self) -> str:
        """The saving at the end of the random start, in words."""
        last, whole = self.levels[-1], self.arms[0].curve[-1].tokens
        parts = []
        for arm in self.arms[1:]:
            tokens = last.tokens[arm.name]
            told = "never" if tokens is None else f"after {tokens:,} ({1 - tokens / whole:.0%} fewer)"
            parts.append(f"{arm.name} {told}")
        return f"the random start ends at a loss of {last.loss:.4f} after {whole:,} tokens; {'; '.join(parts)}"
