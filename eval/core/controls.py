"""Random controls: how many a suite measures beside each removal, what they have in common with it, and their seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from monet.controls import ControlKind
from monet.errors import ConfigError
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.intervention import Intervention

ControlOn = Literal["target", "all"]
Quantity = Literal["mass", "activity"]


@dataclass(frozen=True)
class Controls:
    """Random controls beside each removal.

    Args:
        count: how many there are of each.
        kind: what a control has in common with the removal; see `monet.controls.control_keep`.
        seed: another number draws other controls.
        weights: for mass and activity each unit's, by label; the key "" holds those over all text, for labels that are
            not there.
        measured: what is measured on every control beside what it matches (`monet.eval.core.achieved`): by quantity
            each unit's weights, as above.
    """

    count: int = DEFAULT_CONTROLS
    kind: ControlKind = "number"
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    measured: Mapping[Quantity, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"the number of controls must be at least 0, got {self.count}")
        if self.kind != "number" and not self.weights:
            raise ConfigError(f"controls of equal {self.kind} need the weights of the units")

    def draw(self, like: Intervention, number: int, label: str, text: str) -> Intervention:
        """Control `number` of a removal.

        Its seed depends on the removal and on the text it is judged on, so a choice that was made on one text is
        judged on another with controls that took no part in it.

        Args:
            like: the removal.
            number: from 0 on.
            label: whose weights are matched.
            text: fingerprint of the text, or of the questions.
        """
        content = f"{self.seed}\n{number}\n{self.kind}\n{like.digest}\n{text}"
        seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big")
        weights = None if self.kind == "number" else _of_label(self.weights, label)
        return like.control(self.kind, seed, weights)

    def weights_by_quantity(self, label: str) -> dict[str, Tensor]:
        """Each unit's weights for a label, by quantity: what is matched, and what is measured beside it."""
        known = {**self.measured, **({} if self.kind == "number" else {self.kind: self.weights})}
        found = {of: _of_label(weights, label) for of, weights in known.items()}
        return {of: weights for of, weights in found.items() if weights is not None}

    def settings(self) -> dict[str, Any]:
        """For provenance, JSON-able."""
        return {"count": self.count, "kind": self.kind, "seed": self.seed}


def _of_label(weights: Mapping[str, Tensor], label: str) -> Tensor | None:
    return weights.get(label, weights.get(""))
