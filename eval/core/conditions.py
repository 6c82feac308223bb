"""The conditions of a suite: the unmasked model, each removal, and the random controls of each removal.

Several processes can share the conditions of a suite. Each process computes the outcomes of its `Part`. Then the same
command without a part reads all outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from monet.eval.core.controls import Controls
from monet.eval.core.intervention import Intervention
from monet.parts import Part


@dataclass(frozen=True)
class Condition:
    """One way to run the model.

    Args:
        name: name for people: "no mask", "python", "random 0 like python".
        like: the removal for the label; None for the unmasked model.
        label: label whose units are removed; None for the unmasked model.
        control: number of a random control; None for the removal itself.
        controls: how controls are drawn.
        text: fingerprint of the text or questions on which the condition is judged; see `Controls.draw`.
    """

    name: str
    like: Intervention | None = None
    label: str | None = None
    control: int | None = None
    controls: Controls = field(default_factory=Controls)
    text: str = ""

    @property
    def mask(self) -> Intervention | None:
        """The intervention to apply. Each call draws a control again, so that many conditions need little memory."""
        if self.like is None or self.control is None:
            return self.like
        return self.controls.draw(self.like, self.control, self.label or "", self.text)

    @property
    def removed(self) -> int:
        """Number of removed units; for a control, the number that its removal removes."""
        return 0 if self.like is None else self.like.num_removed


PART_DONE = "this part is done and kept; when all parts are done, run the same command without --part"

# What a suite runs under one condition: the condition only, or the condition with its text.
Pass = TypeVar("Pass")


def dealt(passes: Sequence[tuple[Condition, Pass]], part: Part | None) -> list[tuple[Condition, Pass]]:
    """The passes that belong to a part; all passes if `part` is None.

    Passes of equal cost go to the parts in turn: first the unmasked model and the masks, which are measured on
    everything, then the random controls, which some suites measure only on their target.

    Args:
        passes: all passes, in the same order in every process.
        part: the part; None takes all passes, in their order.
    """
    if part is None:
        return list(passes)
    by_cost = sorted(passes, key=lambda one: one[0].control is not None)
    return by_cost[part.index :: part.count]


def conditions(masks: Mapping[str, Intervention], controls: Controls, text: str) -> list[Condition]:
    """The unmasked model, then every removal followed by its random controls.

    A removal that removes nothing is left out, because it equals the unmasked model.

    Args:
        masks: the removal for each label.
        controls: how many controls each removal gets, and how they are drawn.
        text: fingerprint of the text or questions on which all conditions are judged.
    """
    found = [Condition("no mask")]
    for label, mask in masks.items():
        if mask.num_removed:
            found.append(Condition(label, mask, label))
            found += [
                Condition(f"random {number} like {label}", mask, label, number, controls, text)
                for number in range(controls.count)
            ]
    return found
