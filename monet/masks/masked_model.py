"""The interface of a model that masks need, without importing the model's classes."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn

from monet.configuration_monet import MonetConfig
from monet.errors import ConfigError


class MaskedModel(Protocol):
    """A model that masks apply to: `monet.model.modeling_monet.MonetModel` and the classes around it.

    Attributes:
        config: the model's configuration.
        active_masks: the model's `monet.masks.active.ActiveMasks`.
    """

    config: MonetConfig

    @property
    def active_masks(self) -> Any: ...

    @property
    def layers(self) -> Any:
        """The decoder layers, each with its expert layer as `moe`."""
        ...

    def fingerprint(self) -> str:
        """Identifies the model by its weights; see `monet.model.fingerprint`."""
        ...


def find_body(model: nn.Module) -> MaskedModel:
    """The MonetModel in a module: a Monet model of any class, a PEFT-wrapped one, or one inside a larger model.

    Raises:
        ConfigError: the module contains none.
    """
    for module in model.modules():
        if hasattr(module, "active_masks"):
            return cast(MaskedModel, module)
    raise ConfigError(f"{type(model).__name__} contains no Monet model, so it has no experts to mask")
