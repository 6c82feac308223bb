"""An intervention that is not a mask: a forward hook multiplies a layer's output by a factor."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from monet.errors import CheckpointError, ConfigError
from monet.masks.controls import ControlKind


@dataclass(frozen=True)
class ScaledLayer:
    """Multiplies the output of one layer's expert part by a factor; its control scales a random layer.

    Args:
        layer: number of the layer.
        layers: number of layers of the model.
        factor: 1 changes nothing, 0 removes the contribution of the layer's experts.
        provenance: notes on how it was made.
    """

    layer: int
    layers: int
    factor: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)
    unit: ClassVar[str] = "layer"
    group: ClassVar[str] = "model"

    @property
    def num_units(self) -> int:
        return self.layers

    @property
    def num_removed(self) -> int:
        return int(self.factor != 1.0)

    @property
    def removed_per_group(self) -> list[int]:
        return [self.num_removed]

    @property
    def digest(self) -> str:
        return f"layer {self.layer} of {self.layers} times {self.factor}"

    def check_fits(self, model: nn.Module) -> None:
        if (found := len(self.sites(model))) != 1:
            raise CheckpointError(f"layer {self.layer} of {self.layers}: the model has {found} such layers")

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        (site,) = self.sites(model)
        hook = site.register_forward_hook(lambda _, __, output: output * self.factor)
        try:
            yield model
        finally:
            hook.remove()

    def taken(self, weights: Tensor) -> float:
        return (1 - self.factor) * float(weights[self.layer])

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> ScaledLayer:
        if kind != "number":
            raise ConfigError(f"a layer has no {kind}")
        return ScaledLayer(random.Random(seed).randrange(self.layers), self.layers, self.factor, {"seed": seed})

    def sites(self, model: Any) -> list[nn.Module]:
        layers = list(model.model.layers)
        return [layers[self.layer].moe] if len(layers) == self.layers else []
