"""Steps with a non-finite loss or gradient: their report in the run's folder, and how they are undone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from monet.errors import ConfigError
from monet.files import atomic_write_text
from monet.model.router import RoutingStatistics


@dataclass(frozen=True)
class NonFiniteSettings:
    """What to do if a loss or gradient is NaN or infinite on any rank.

    Args:
        policy: stop ends the run before the update; skip leaves out this one update and continues.
        max_consecutive_skips: maximum number of skipped updates in a row; the next bad step always stops the run.
    """

    policy: Literal["stop", "skip"] = "stop"
    max_consecutive_skips: int = 5

    def __post_init__(self) -> None:
        if self.max_consecutive_skips < 1:
            raise ConfigError(f"nonfinite.max_consecutive_skips must be at least 1, got {self.max_consecutive_skips}")


class RouterSnapshot:
    """The routers' running statistics before a step; the forward pass of a bad batch changes them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values: list[tuple[Tensor, Tensor]] = []

    def take(self) -> None:
        """Save the statistics."""
        parts = [part for part in self._model.modules() if isinstance(part, RoutingStatistics)]
        self._values = [(buffer, buffer.clone()) for part in parts for buffer in part.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the statistics that `take` saved."""
        for buffer, value in self._values:
            buffer.copy_(value)


def norm_table(model: nn.Module) -> list[dict[str, Any]]:
    """Return one row for each decoder layer and each other part, for the tensors that this process holds.

    Returns:
        Rows with `part`, `weight_norm`, `gradient_norm` (None if not finite or not on this process), and the number of
        non-finite elements in weights, gradients and running statistics.
    """
    parts: dict[str, dict[str, list[Tensor]]] = {}

    def note(name: str, kind: str, tensor: Tensor | None) -> None:
        row = parts.setdefault(_part(name), {"weights": [], "gradients": [], "statistics": []})
        if tensor is not None and tensor.is_floating_point():
            local = getattr(tensor, "to_local", lambda: tensor)()  # this process's part, if the tensor is sharded
            row[kind].append(local.detach())

    for name, parameter in model.named_parameters():
        note(name, "weights", parameter)
        note(name, "gradients", parameter.grad)
    for name, buffer in model.named_buffers():
        note(name, "statistics", buffer)
    return [
        {
            "part": part,
            "weight_norm": _norm(tensors["weights"]),
            "gradient_norm": _norm(tensors["gradients"]),
            **{f"nonfinite_{kind}": sum(int((~t.isfinite()).sum()) for t in found) for kind, found in tensors.items()},
        }
        for part, tensors in parts.items()
    ]


def _part(name: str) -> str:
    words = name.split(".")
    for place, word in enumerate(words[:-1]):
        if word == "layers" and words[place + 1].isdigit():
            return ".".join(words[: place + 2])
    return ".".join(words[:-1])


def _norm(tensors: list[Tensor]) -> float | None:
    if not tensors:
        return None
    norm = math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors))
    return norm if math.isfinite(norm) else None


def write_dump(folder: Path, step: int, rank: int, content: dict[str, Any]) -> None:
    """Write a report of a bad step to folder/step-00000006.rank-0.json; if the disk fails, only warn."""
    path = folder / f"step-{step:08d}.rank-{rank}.json"
    try:
        atomic_write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        rank_zero_warn(f"the report of the bad step cannot be written: {error}")
