"""Compare what random controls take with what their mask takes: routing mass and activity.

A control that removes the same number of experts can take far less routing weight than its mask. A control of equal
mass takes the mask's mass. A control of equal activity takes nearly the mask's activity. Both need enough mass or
activity in the other experts of a group. So every suite records the ratio of what its controls take to what the mask
takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from monet.eval.core.document import Block, Table

if TYPE_CHECKING:
    from monet.eval.core.conditions import Condition
    from monet.eval.core.controls import Controls


@dataclass(frozen=True)
class Achieved:
    """What the random controls of one mask take.

    Args:
        mask: label of the mask.
        of: "mass", the mean routing weight per token (for neurons, the mean activity), or "activity", the share of
            tokens. Both are sums over the removed units, on the label's text in the statistics.
        own: what the mask takes.
        least, mean, most: what a control takes divided by `own`: minimum, mean and maximum over the controls.
    """

    mask: str
    of: str
    own: float
    least: float
    mean: float
    most: float

    @property
    def words(self) -> str:
        """The mean ratio and its range."""
        return f"{self.mean:.3g} ({self.least:.3g} to {self.most:.3g})"


def achieved(run_under: Iterable[Condition]) -> list[Achieved]:
    """Return what the controls of each mask take.

    A mask is left out if it has no controls, if no weights are known, or if it takes nothing.

    Args:
        run_under: conditions of a suite.
    """
    by_label: dict[str, list[Condition]] = {}
    for condition in run_under:
        if condition.control is not None and condition.label is not None:
            by_label.setdefault(condition.label, []).append(condition)
    found = []
    for label, controls in by_label.items():
        like = controls[0].like
        weights = controls[0].controls.weights_by_quantity(label)
        owns = {of: like.taken(weight) for of, weight in weights.items()} if like is not None else {}
        if not any(owns.values()):
            continue
        taken: dict[str, list[float]] = {of: [] for of, own in owns.items() if own}
        for condition in controls:
            drawn = condition.mask
            assert drawn is not None, "a control is like a mask"
            for of, ratios in taken.items():
                ratios.append(drawn.taken(weights[of]) / owns[of])
        found += [
            Achieved(label, of, owns[of], min(ratios), sum(ratios) / len(ratios), max(ratios))
            for of, ratios in taken.items()
        ]
    return found


def control_notes(controls: Controls, run_under: Iterable[Condition], **more: Any) -> dict[str, Any]:
    """Notes on the random controls for a result's provenance, JSON-able.

    Args:
        controls: controls of the suite.
        run_under: conditions of the suite.
        more: further settings, for example the text on which the controls were measured.
    """
    return {**controls.settings(), **more, "achieved": [asdict(one) for one in achieved(run_under)]}


def _read(provenance: Mapping[str, Any]) -> list[Achieved]:
    return [Achieved(**one) for one in provenance.get("controls", {}).get("achieved", [])]


def told(provenance: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal, one for each quantity."""
    found = _read(provenance)
    return [
        f"{of} that random controls take, as a ratio to the mask's: "
        + "; ".join(f"{one.mask} {one.words}" for one in found if one.of == of)
        for of in dict.fromkeys(one.of for one in found)
    ]


def achieved_table(provenance: Mapping[str, Any]) -> Sequence[Block]:
    """A table of all masks for a report; empty if the provenance does not record the quantities."""
    found = _read(provenance)
    if not found:
        return []
    rows = [
        [one.mask, one.of, f"{one.own:.4g}", *(f"{ratio:.3g}" for ratio in (one.least, one.mean, one.most))]
        for one in found
    ]
    return [
        Table(
            "What the random controls take, as a ratio to what the mask takes",
            ["mask", "of", "the mask takes", "least control", "mean", "most"],
            rows,
            "Mass is the mean weight per token, summed over all removed units. Activity is their share of tokens. Both "
            "are measured on the label's text in the statistics. A control with a ratio far below 1 takes less than "
            "the mask, so a larger effect of the mask says little.",
        )
    ]
