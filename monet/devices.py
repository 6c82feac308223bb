"""The device a command works on."""

from __future__ import annotations

import torch

from monet.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` uses a GPU if there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); use cpu") from None
