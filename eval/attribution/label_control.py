"""The control of a selection: the number of experts that its rule finds under meaningless labels.

`monet stats` collects its sums a second time under labels (or scores) that are shuffled over whole documents. On these
sums the same rule finds only what it finds by chance. A rule whose options fix the number of experts (`top`) finds that
number under any labels. For such a rule, the control takes the lowest rank that it chose under the true labels, and
counts the experts that reach this rank under permuted labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from monet.eval.core.document import Block, Table, Text

if TYPE_CHECKING:
    from monet.eval.attribution.rules import Rule
    from monet.eval.attribution.stats import ExpertStatistics

# Key in a mask's provenance.
KEY = "label_control"
# Up to this number of permutations, the number of each one is shown.
_EACH = 5


@dataclass(frozen=True)
class LabelControl:
    """The number of experts that a rule found for one label, and the numbers under permuted labels.

    Args:
        experts: number of experts chosen under the true labels.
        permuted: for each permutation, the number of experts that the rule finds; see `Rule.found_in`.
        fixed_number: the rule's options fix `experts`; `permuted` then counts the experts that reach the lowest rank
            among the chosen.
    """

    experts: int
    permuted: list[int]
    fixed_number: bool

    @property
    def mean(self) -> float:
        """Mean over the permutations."""
        return sum(self.permuted) / len(self.permuted)

    @property
    def by_chance(self) -> bool:
        """Whether permuted labels give at least half as many experts, so that half or more may be chosen by chance."""
        return self.experts > 0 and 2 * self.mean >= self.experts

    @property
    def words(self) -> str:
        """The number under permuted labels: the mean, and each number or the range."""
        if len(self.permuted) == 1:
            return f"{self.permuted[0]:,}"
        each = ", ".join(f"{number:,}" for number in self.permuted)
        if len(self.permuted) > _EACH:
            each = f"{min(self.permuted):,} to {max(self.permuted):,}"
        return f"{self.mean:,.1f} ({each})"

    def notes(self) -> dict[str, Any]:
        """Entry for a mask's provenance, JSON-able."""
        return {**asdict(self), "permuted_mean": self.mean}


def label_controls(rule: Rule, statistics: ExpertStatistics) -> dict[str, LabelControl]:
    """The control of each label; empty if the statistics have no permuted labels.

    Raises:
        DataError: the statistics lack what the rule needs.
    """
    if not statistics.permuted:
        return {}
    chosen = {label: int(chosen_REE.sum()) for label, chosen_REE in rule.chosen(statistics).items()}
    found = [rule.found_in(permuted, statistics) for permuted in statistics.permuted]
    return {label: LabelControl(number, [one[label] for one in found], rule.fixed_number) for label, number in
            chosen.items()}  # fmt: skip


def of_masks(provenances: Mapping[str, Mapping[str, Any]]) -> dict[str, LabelControl]:
    """The controls in the provenance of masks, by label; masks without one are left out."""
    found = {label: notes.get(KEY) for label, notes in provenances.items()}
    return {
        label: LabelControl(one["experts"], list(one["permuted"]), one["fixed_number"])
        for label, one in found.items()
        if one is not None
    }


def warning(controls: Mapping[str, LabelControl]) -> str:
    """A warning about labels whose experts may be chosen by chance; empty if there are none."""
    names = [label for label, one in controls.items() if one.by_chance]
    if not names:
        return ""
    told = "; ".join(f"{label}: {controls[label].experts:,}, permuted {controls[label].words}" for label in names)
    return (
        f"Under permuted labels, which mean nothing, the rule finds at least half as much as under the true labels "
        f"({told}). Most of what it selected may be there by chance: choose a stricter rule, or collect statistics "
        "over more documents."
    )


def blocks_of(controls: Mapping[str, LabelControl]) -> Sequence[Block]:
    """A table for a report, with a warning if one is due; empty without controls."""
    if not controls:
        return []
    table = Table(
        "What the rule finds under permuted labels",
        ["selected for", "selected", "under permuted labels"],
        [[label, f"{one.experts:,}", one.words] for label, one in controls.items()],
        note_on(controls),
    )
    words = warning(controls)
    return [table, *([Text(words, caution=True)] if words else [])]


def note_on(controls: Mapping[str, LabelControl]) -> str:
    """How to read the numbers."""
    note = (
        "Labels (for a correlation, scores) were shuffled over whole documents, and the same rule was applied. "
        "Everything that it finds there is there by chance."
    )
    if any(one.fixed_number for one in controls.values()):
        note += (
            " This rule's options fix how many are selected. So the second number counts those that reach, under "
            "permuted labels, the lowest rank among the selected."
        )
    return note
