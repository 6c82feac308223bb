"""Compare a chosen removal with random controls: p-values, q-values, and the verdict.

The null hypothesis of one removal is that it is one more random control. Its change and the changes of n controls are
then equally likely to come in any order. So the chance that at most k controls reach its change is (k + 1) / (n + 1):
an exact p-value that assumes no distribution. The smallest possible value is 1 / (n + 1).

Sources: Phipson and Smyth 2010 (permutation p-values are never zero), Benjamini and Hochberg 1995 (q-values).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A removal is above chance if its q-value is at most this.
LEVEL = 0.05
# With this number of controls, one of twenty removals can be above chance, and about half of twelve at the same time.
DEFAULT_CONTROLS = 39


def p_value(change: float, controls: Sequence[float]) -> float:
    """Chance that a random control changes the target at least as much; ties count for the control.

    Args:
        change: change that the removal makes; a larger number is a stronger effect.
        controls: changes that the random controls make, in the same unit; without controls the result is 1.
    """
    return (1 + sum(control >= change for control in controls)) / (1 + len(controls))


def q_values(p: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg q-values in the order of `p`: the smallest false discovery rate that keeps each finding."""
    order = sorted(range(len(p)), key=p.__getitem__, reverse=True)
    found, least = [0.0] * len(p), 1.0
    for place, index in enumerate(order):
        least = min(least, p[index] * len(p) / (len(p) - place))
        found[index] = least
    return found


@dataclass(frozen=True)
class Chance:
    """How a removal compares with its random controls.

    Args:
        controls: number of controls.
        p: chance that a control does as much as the removal; see `p_value`.
        q: smallest false discovery rate over the removals that were judged together; see `q_values`.
    """

    controls: int
    p: float
    q: float

    @property
    def above(self) -> bool:
        """The removal does more than chance explains."""
        return self.q <= LEVEL

    @property
    def words(self) -> str:
        """For example "p 0.025, q 0.030 (39 random controls)"."""
        return f"p {self.p:.3g}, q {self.q:.3g} ({self.controls} random controls)"


def chances(changes: Mapping[str, float], controls: Mapping[str, Sequence[float]]) -> dict[str, Chance]:
    """Compare every removal with its own controls, and judge all removals together.

    Args:
        changes: change of each removal, by name; a larger number is a stronger effect.
        controls: changes of the random controls of each removal, by name.
    """
    p = [p_value(change, controls[name]) for name, change in changes.items()]
    return {name: Chance(len(controls[name]), one, q) for name, one, q in zip(changes, p, q_values(p), strict=True)}


def reasons_against(
    removed: int, target: float, others: Mapping[str, float], chance: Chance | None, unit: str = "expert"
) -> list[str]:
    """Reasons why a removal does not pass; empty if it passes.

    `passes` means the same in every suite: the removal removes something, its own domain changes more than every other
    domain, and that change is more than chance explains (q at most `LEVEL`).

    Args:
        removed: number of removed units.
        target: change of the removal's own domain; a larger number is a stronger effect.
        others: change of every other domain, by name.
        chance: comparison with random controls; None if none were measured.
        unit: name of the unit that is removed.
    """
    if not removed:
        return [f"no {unit} belongs to it"]
    reasons = []
    if others and target <= others[worst := max(others, key=others.__getitem__)]:
        reasons.append(f"{worst} lost as much or more")
    if chance is None:
        reasons.append("no random control was measured")
    elif not chance.above:
        reasons.append(f"within the interval of random masks: {chance.words}")
    return reasons
