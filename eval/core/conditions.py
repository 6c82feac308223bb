"""What a suite evaluates a model under: as it is, under each removal, and under each removal's random controls.

A suite's conditions can be dealt to several processes: each computes the outcomes of its `Part`, and the same command
without a part reads them all.
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
        name: for people: "no mask", "python", "random 0 like python".
        like: what is removed for the label; None runs the model as it is.
        label: whose units are removed; None for the model as it is.
        control: number of a random control; None for the label's own.
        controls: how controls are drawn.
        text: fingerprint of what the condition is judged on; see `Controls.draw`.
    """

    name: str
    like: Intervention | None = None
    label: str | None = None
    control: int | None = None
    controls: Controls = field(default_factory=Controls)
    text: str = ""

    @property
    def mask(self) -> Intervention | None:
        """What to apply. A control is drawn at each call, so that many conditions need little memory."""
        if self.like is None or self.control is None:
            return self.like
        return self.controls.draw(self.like, self.control, self.label or "", self.text)

    @property
    def removed(self) -> int:
        """Units removed; of a control those of the removal that it is like."""
        return 0 if self.like is None else self.like.num_removed


PART_DONE = "this part is done and kept; when all parts are done, run the same command without --part"

# What a suite runs under one condition: the condition, or one with its text.
Pass = TypeVar("Pass")


def dealt(passes: Sequence[tuple[Condition, Pass]], part: Part | None) -> list[tuple[Condition, Pass]]:
    """The passes that belong to a part; all of them without one.

    Passes of equal cost are dealt in turn: first the model as it is and the masks, which are measured on everything,
    then the random controls, which may be measured on their target only.

    Args:
        passes: the same ones in the same order in every process.
        part: None takes all, in their order.
    """
    if part is None:
        return list(passes)
    by_cost = sorted(passes, key=lambda one: one[0].control is not None)
    return by_cost[part.index :: part.count]


def conditions(masks: Mapping[str, Intervention], controls: Controls, text: str) -> list[Condition]:
    """The model as it is, then every removal followed by its random controls.

    Removals of nothing are left out: they are the model as it is.

    Args:
        masks: per label what is removed for it.
        controls: how many controls each gets, and how they are drawn.
        text: fingerprint of what all conditions are judged on.
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
