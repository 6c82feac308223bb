"""Random controls as options of a command, with the statistics that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from monet.controls import ControlKind
from monet.errors import ConfigError
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.controls import Controls, Quantity
from monet.eval.core.weights import weights_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ControlOptions:
    """Random controls of a command.

    Args:
        count: random controls of each mask; with n of them the least p-value is 1 / (n + 1).
        kind: what a control has in common with its mask. number: as many experts of every routing group. mass: as much
            routing weight, whatever number of experts that takes. activity: for each expert one of nearly its activity.
        statistics: file of `monet stats`, on the text the masks are judged on or on other text of the same domains; for
            mass, and with `--firing` for activity. With number, results then say how much mass the controls take.
        seed: another number draws other controls.

    Raises:
        ConfigError: a value out of range, or no statistics where they are needed.
    """

    count: int = DEFAULT_CONTROLS
    kind: ControlKind = "number"
    statistics: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(f"controls.count must be at least 0, got {self.count}")
        if self.kind != "number" and self.statistics is None:
            raise ConfigError(
                f"controls.kind = {self.kind} needs the experts' statistics; give --controls.statistics FILE, made by"
                " `monet stats`"
            )

    def open(self, model: nn.Module | None = None) -> Controls:
        """Read the statistics.

        Raises:
            CheckpointError: no readable statistics, or those of another model.
            DataError: no firing counted, where activity is matched.
        """
        if self.statistics is None:
            return Controls(self.count, self.kind, self.seed)
        quantities: tuple[Quantity, ...] = ("mass", "activity") if self.kind == "activity" else ("mass",)
        measured: dict[Quantity, dict[str, Tensor]] = {of: weights_of(self.statistics, of, model) for of in quantities}
        weights = {} if self.kind == "number" else measured[self.kind]
        return Controls(self.count, self.kind, self.seed, weights, measured)
