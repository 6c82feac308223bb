"""What the reports of several suites share: where masks come from, how they are judged, the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monet.eval.core.achieved import achieved_table
from monet.eval.document import Block
from monet.eval.label_control import blocks_of, of_masks

ORIGIN = {
    True: "The masks were chosen on another split, or on text prepared apart from this.",
    False: "The masks were chosen on the text they are evaluated on, which flatters them.",
    None: "It is not recorded what text the masks were chosen on; if it is this one, that flatters them.",
}

HOW_JUDGED = (
    "A mask passes if its own domain lost more than any other, and more than chance explains. p is the chance that one "
    "of its random controls does as much. q is the share of false findings to expect (Benjamini and Hochberg) if every "
    "mask with a p as small is called a finding; it must be at most 0.05."
)


def random_units(controls: Mapping[str, Any], what: str) -> str:
    """What the random controls remove, in words."""
    kind = controls["kind"]
    return f"As many random {what}" if kind == "number" else f"Random {what} of equal {kind}"


def control_blocks(provenance: Mapping[str, Any]) -> list[Block]:
    """What a suite's random controls take, and what the selection of its masks finds under permuted labels."""
    return [*achieved_table(provenance), *blocks_of(of_masks(provenance.get("masks", {})))]
