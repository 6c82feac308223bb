"""What a suite takes out of a model: one interface for experts, neurons and whatever comes next.

A suite knows nothing but this interface. A new kind of unit (say, the latents of a sparse autoencoder) is a class with
these members, and every suite takes it.
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
    """A change of a model that holds inside a block and leaves nothing behind."""

    @property
    def unit(self) -> str:
        """Name of what is changed, in the singular: "expert", "neuron"."""
        ...

    @property
    def group(self) -> str:
        """Name of what units are counted by: "routing group", "layer"."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """JSON-able notes on how it was made."""
        ...

    @property
    def num_units(self) -> int:
        """All units of the model."""
        ...

    @property
    def num_removed(self) -> int:
        """Units that are removed, attenuated or amplified. An intervention with none leaves the model as it is."""
        ...

    @property
    def removed_per_group(self) -> list[int]:
        """The same by group."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of all that the effect depends on; equal for interventions that do the same."""
        ...

    def check_fits(self, model: nn.Module) -> None:
        """Raise CheckpointError if it was made for another model."""
        ...

    def applied_to(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Change every forward and generate of the model inside the block; nested blocks add up."""
        ...

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> Intervention:
        """A random intervention like this one.

        Args:
            kind: what it has in common with this one: the number of units, their mass, or their activity.
            seed: of the choice.
            weights: of each unit, in the unit's own layout; see `monet.masks.controls.control_keep`.
        """
        ...

    def taken(self, weights: Tensor) -> float:
        """The sum of the weights of what is removed; of what is attenuated, the share that is taken.

        Args:
            weights: of each unit, in the unit's own layout; see `monet.masks.controls.removed_mass`.
        """
        ...

    def sites(self, model: nn.Module) -> Sequence[nn.Module]:
        """The modules whose outputs change, in the order in which they run; they take positional tensors."""
        ...


def share(intervention: Intervention) -> float:
    """Share of all units that is removed."""
    return intervention.num_removed / intervention.num_units


def check_all(interventions: Mapping[str, Intervention], model: nn.Module) -> None:
    """Refuse interventions made for another model.

    Raises:
        CheckpointError: names the label.
    """
    for label, one in interventions.items():
        try:
            one.check_fits(model)
        except CheckpointError as error:
            raise CheckpointError(f"mask for {label!r}: {error}") from None


def unit_of(interventions: Mapping[str, Intervention]) -> tuple[str, str]:
    """The unit that all of them change, and what it is counted by; of none of them, a Monet's.

    Raises:
        DataError: they change different units.
    """
    found = {(one.unit, one.group) for one in interventions.values()} or {("expert", "routing group")}
    if len(found) > 1:
        units = " and ".join(sorted(f"{unit}s" for unit, _ in found))
        raise DataError(f"masks of {units} cannot be judged together; give them one by one")
    return found.pop()
