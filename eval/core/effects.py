"""What the removals of a result did, in the form in which results of several models are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monet.eval.core.estimate import Estimate


@dataclass(frozen=True)
class Effect:
    """What one mask did. All changes are in the unit of `Effects.unit`. What a suite does not measure is None.

    Args:
        name: of the row: the mask, and if it has several rows, of what.
        target: change of what the mask is to hit, with its interval over text.
        others_mean: unweighted mean over the other domains.
        others_max: change of the other domain that changed most in the direction of a stronger effect.
        others_max_name: that domain; empty without one.
        random: change of the target under one of the mask's random controls.
        controls, p, q: how many controls there were, and what they say; see `monet.eval.core.chance`.
        passes: see `monet.eval.core.chance.reasons_against`; None in a suite without a verdict.
        reason: why it does not pass; empty if it does.
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


@dataclass(frozen=True)
class Effects:
    """All rows of a result.

    Args:
        quantity, unit: what changed, in words, and the unit of every number.
        confidence: of the intervals.
        removed: the unit that was removed, for example "expert".
        text: what it was measured on and how, by name, JSON-able: fingerprints of texts or questions, and settings. Two
            results are compared only if all of it is equal.
        held_out: whether the masks were chosen on other text; None if that is not recorded.
        rows: one a mask, or several.
    """

    quantity: str
    unit: str
    confidence: float
    removed: str
    text: dict[str, Any]
    held_out: bool | None
    rows: list[Effect]
