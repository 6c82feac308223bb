"""Random controls as options of a command, with the statistics that they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from monet.errors import ConfigError
from monet.eval.attribution.statistics.result import ExpertStatistics
from monet.eval.attribution.weights import weights_of
from monet.eval.core.chance import DEFAULT_CONTROLS
from monet.eval.core.controls import Controls, Quantity
from monet.masks.controls import ControlKind

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ControlOptions:
    """Random controls of a command.

    Args:
        count: random controls of each mask; with n controls the smallest p-value is 1 / (n + 1).
        kind: what a control has in common with its mask. number: the same number of experts in every routing group.
            mass: the same routing weight, with any number of experts. activity: for each expert, an expert of nearly
            the same activity.
        statistics: file of `monet stats`, on the text on which the masks are judged or on other text of the same
            domains. mass needs it. activity needs it with `--firing`. For number, results then also record how much
            mass the controls take.
        seed: another seed draws other controls.

    Raises:
        ConfigError: a value is out of range, or statistics are needed but missing.
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
            CheckpointError: the statistics are unreadable, or belong to another model.
            DataError: `kind` is activity, but the statistics have no firing counts.
        """
        if self.statistics is None:
            return Controls(self.count, self.kind, self.seed)
        quantities: tuple[Quantity, ...] = ("mass", "activity") if self.kind == "activity" else ("mass",)
        statistics = ExpertStatistics.load(self.statistics, model=cast(Any, model))
        measured: dict[Quantity, dict[str, Tensor]] = {
            of: weights_of(statistics, of, str(self.statistics)) for of in quantities
        }
        weights = {} if self.kind == "number" else measured[self.kind]
        return Controls(self.count, self.kind, self.seed, weights, measured)
