"""Texts that the reports of several suites share: the origin of masks, the verdicts, the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monet.eval.attribution.label_control import blocks_of, of_masks
from monet.eval.core.achieved import achieved_table
from monet.eval.core.document import Block

ORIGIN = {
    True: "The masks were chosen on another split, or on separately prepared text.",
    False: "The masks were chosen on the text they are evaluated on, so they look better than they are.",
    None: "There is no record of the text that the masks were chosen on. If it is this text, the masks look better "
    "than they are.",
}

HOW_JUDGED = (
    "A mask passes if its own domain lost more than any other, and more than chance explains. p is the probability "
    "that a random control of the mask does as much. q is the expected share of false findings (Benjamini and "
    "Hochberg) if every mask with an equal or smaller p is called a finding; q must be at most 0.05."
)


def random_units(controls: Mapping[str, Any], what: str) -> str:
    """Describe the units that random controls remove."""
    kind = controls["kind"]
    return f"As many random {what}" if kind == "number" else f"Random {what} of equal {kind}"


def control_blocks(provenance: Mapping[str, Any]) -> list[Block]:
    """Report blocks: what random controls remove, and what the selection of masks finds under permuted labels."""
    return [*achieved_table(provenance), *blocks_of(of_masks(provenance.get("masks", {})))]
