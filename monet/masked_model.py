"""What masks need to know of a model, without an import of its classes."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import nn

from monet.configuration_monet import MonetConfig
from monet.errors import ConfigError


class MaskedModel(Protocol):
    """A model that masks apply to: `monet.modeling_monet.MonetModel` and the classes around it.

    Attributes:
        config: its sizes.
        active_masks: the `monet.masking.ActiveMasks` in force.
    """

    config: MonetConfig

    @property
    def active_masks(self) -> Any: ...

    @property
    def layers(self) -> Any:
        """The decoder layers, each with its expert layer as `moe`."""
        ...

    def fingerprint(self) -> str:
        """Which model this is, by its weights; see `monet.fingerprint`."""
        ...


def find_body(model: nn.Module) -> MaskedModel:
    """The MonetModel in a module: a Monet model of any class, one that PEFT has wrapped, or one inside a larger model.

    Raises:
        ConfigError: there is none.
    """
    for module in model.modules():
        if hasattr(module, "active_masks"):
            return cast(MaskedModel, module)
    raise ConfigError(f"{type(model).__name__} holds no Monet model, so it has no experts to mask")
