"""Effects of the removals of a result, in the form in which results of several models are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from monet.eval.core.estimate import Estimate


class Judged(Protocol):
    """A mask's row in a result that judges masks."""

    @property
    def name(self) -> str: ...

    @property
    def controls(self) -> int: ...

    @property
    def p(self) -> float: ...

    @property
    def q(self) -> float: ...

    @property
    def passes(self) -> bool: ...

    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class Effect:
    """The effect of one mask. All changes are in the unit of `Effects.unit`. A value is None if the suite lacks it.

    Args:
        name: name of the row: the mask, and the quantity if a mask has several rows.
        target: change of the mask's target, with its interval over text.
        others_mean: unweighted mean of the changes of the other domains.
        others_max: change of the other domain that changed most in the direction of a stronger effect.
        others_max_name: that domain; empty if there is no other domain.
        random: change of the target under one of the mask's random controls.
        controls, p, q: number of controls, p-value and q-value; see `monet.eval.core.chance`.
        passes: see `monet.eval.core.chance.reasons_against`; None in a suite without a verdict.
        reason: why the mask does not pass; empty if it passes.
    """

    name: str
    target: Estimate
    others_mean: Estimate | None
    others_max: float | None
    others_max_name: str
    random: Estimate | None
    controls: int
    p: float
    q: float
    passes: bool | None
    reason: str

    @classmethod
    def of(
        cls,
        judged: Judged,
        target: Estimate,
        others_mean: Estimate | None,
        others_max: tuple[float | None, str],
        random: Estimate | None,
    ) -> Effect:
        """The row of a judged mask; `others_max` is the value and the name of the other domain."""
        one = judged
        return cls(
            one.name, target, others_mean, *others_max, random, one.controls, one.p, one.q, one.passes, one.reason
        )


def lowest(changes: Mapping[str, float], own: str) -> tuple[float | None, str]:
    """The lowest change of all domains but `own`, and that domain; None and "" if there is no other."""
    others = {name: change for name, change in changes.items() if name != own}
    worst = min(others, key=others.__getitem__, default="")
    return others.get(worst), worst


@dataclass(frozen=True)
class Effects:
    """All rows of a result.

    Args:
        quantity, unit: what changed, in words, and the unit of every number.
        confidence: confidence level of the intervals.
        removed: the unit that was removed, for example "expert".
        text: what was measured and how, by name, JSON-able: fingerprints of texts or questions, and settings. Two
            results are compared only if all entries are equal.
        held_out: whether the masks were chosen on other text; None if that is not recorded.
        rows: one or more rows for each mask.
    """

    quantity: str
    unit: str
    confidence: float
    removed: str
    text: dict[str, Any]
    held_out: bool | None
    rows: list[Effect]
