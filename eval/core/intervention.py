"""What a suite removes from a model: one interface for experts, neurons and other units.

Suites use only this interface. A new kind of unit (say, the latents of a sparse autoencoder) is a class with these
members, and works in every suite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from monet.errors import CheckpointError, DataError
from monet.masks.controls import ControlKind


@runtime_checkable
class Intervention(Protocol):
    """A change of a model that lasts for one `with` block."""

    @property
    def unit(self) -> str:
        """Name of the changed unit, in the singular: "expert", "neuron"."""
        ...

    @property
    def group(self) -> str:
        """Name of the group by which units are counted: "routing group", "layer"."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """Notes on how the intervention was made, JSON-able."""
        ...

    @property
    def num_units(self) -> int:
        """Number of all units of the model."""
        ...

    @property
    def num_removed(self) -> int:
        """Units that are removed, attenuated or amplified. With none, the intervention does not change the model."""
        ...

    @property
    def removed_per_group(self) -> list[int]:
        """Units that are removed, attenuated or amplified, by group."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of everything that the effect depends on; equal for interventions of equal effect."""
        ...

    def check_fits(self, model: nn.Module) -> None:
        """Raise CheckpointError if the intervention was made for another model."""
        ...

    def applied_to(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Change every forward pass and every `generate` inside the block. Nested blocks combine."""
        ...

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> Intervention:
        """A random intervention that is similar to this one.

        Args:
            kind: what both have in common: the number of units, their mass, or their activity.
            seed: seed for the random choice.
            weights: a weight for each unit, in the unit's own layout; see `monet.masks.controls.control_keep`.
        """
        ...

    def taken(self, weights: Tensor) -> float:
        """The sum of the weights of the removed units. An attenuated unit counts for the share that is taken.

        Args:
            weights: a weight for each unit, in the unit's own layout; see `monet.masks.controls.removed_mass`.
        """
        ...

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """The modules whose outputs change, in the order in which they run. They take positional tensors."""
        ...


def share(intervention: Intervention) -> float:
    """Share of all units that is removed."""
    return intervention.num_removed / intervention.num_units


def check_all(interventions: Mapping[str, Intervention], model: nn.Module) -> None:
    """Refuse interventions that were made for another model.

    Raises:
        CheckpointError: an intervention does not fit; the message names its label.
    """
    for label, one in interventions.items():
        try:
            one.check_fits(model)
        except CheckpointError as error:
            raise CheckpointError(f"mask for {label!r}: {error}") from None


def unit_of(interventions: Mapping[str, Intervention]) -> tuple[str, str]:
    """The unit that all interventions change, and its group; experts and routing groups if there are none.

    Raises:
        DataError: the interventions change different units.
    """
    found = {(one.unit, one.group) for one in interventions.values()} or {("expert", "routing group")}
    if len(found) > 1:
        units = " and ".join(sorted(f"{unit}s" for unit, _ in found))
        raise DataError(f"masks of {units} cannot be judged together; give masks of one unit")
    return found.pop()
