"""Random controls: how many a suite measures for each removal, what they have in common with it, and their seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from monet.errors import ConfigError
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.intervention import Intervention
from monet.masks.controls import ControlKind

ControlOn = Literal["target", "all"]
Quantity = Literal["mass", "activity"]


@dataclass(frozen=True)
class Controls:
    """Random controls of each removal.

    Args:
        count: number of controls of each removal.
        kind: what a control has in common with its removal; see `monet.masks.controls.control_keep`.
        seed: another seed draws other controls.
        weights: weights of the units by label, for controls of equal mass or activity. The key "" holds the weights
            over all text, for labels without an entry.
        measured: weights of the units by quantity and label, as above. The suite measures these quantities on every
            control, in addition to the matched one (`monet.eval.core.achieved`).
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
            raise ConfigError(f"controls of equal {self.kind} need the weights of the units; give `weights`")

    def draw(self, like: Intervention, number: int, label: str, text: str) -> Intervention:
        """Draw control `number` of a removal.

        Its seed depends on the removal and on the text on which the removal is judged. So a choice that was made on one
        text is judged on another text with new controls.

        Args:
            like: the removal.
            number: number of the control, from 0.
            label: label whose weights are matched.
            text: fingerprint of the text or of the questions.
        """
        content = f"{self.seed}\n{number}\n{self.kind}\n{like.digest}\n{text}"
        seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big")
        weights = None if self.kind == "number" else _of_label(self.weights, label)
        return like.control(self.kind, seed, weights)

    def weights_by_quantity(self, label: str) -> dict[str, Tensor]:
        """Weights of the units for a label, by quantity: the matched quantity and the measured ones."""
        known = {**self.measured, **({} if self.kind == "number" else {self.kind: self.weights})}
        found = {of: _of_label(weights, label) for of, weights in known.items()}
        return {of: weights for of, weights in found.items() if weights is not None}

    def settings(self) -> dict[str, Any]:
        """Settings for provenance, JSON-able."""
        return {"count": self.count, "kind": self.kind, "seed": self.seed}


def _of_label(weights: Mapping[str, Tensor], label: str) -> Tensor | None:
    return weights.get(label, weights.get(""))
