"""Folders of trained transcoders: result.json with their numbers, and model.safetensors with their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from monet.errors import CheckpointError
from monet.eval.core.results import RESULT_NAME, Result
from monet.files import atomic_path
from monet.model.dense_models import weights_digest
from studies.transcoders.module import Shape, Transcoder

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Trained(Result):
    """Transcoders of several layers.

    Args:
        model, model_fingerprint: the dense model.
        layers: the layers of the MLPs that were learned.
        shape: sizes of each layer's transcoder.
        parameters: parameters of one layer's transcoder.
        parameters_like: parameters of one layer of the conversion that they are compared with.
        tokens: tokens of the training.
        seed: seed for start weights and the order of the text.
        fvu_start, fvu: fraction of variance unexplained on held-out text, by layer, before and after the training.
        active: mean number of active latents per token on held-out text, by layer.
        dead: latents that were never active on held-out text, by layer.
        held_out_tokens: tokens of that text.
        seconds, cpu_seconds: wall and processor seconds of the training.
        settings: the settings of the training.
        provenance: versions and date.
    """

    FORMAT: ClassVar[str] = "monet-transcoders/1"
    COMMAND: ClassVar[str] = "python -m studies.transcoders"

    model: str
    model_fingerprint: str
    layers: list[int]
    shape: Shape
    parameters: int
    parameters_like: int
    tokens: int
    seed: int
    fvu_start: dict[str, float]
    fvu: dict[str, float]
    active: dict[str, float]
    dead: dict[str, int]
    held_out_tokens: int
    seconds: float
    cpu_seconds: float
    settings: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def sentence(self) -> str:
        """The main numbers, in words."""
        mean, dead = (sum(of.values()) / len(of) for of in (self.fvu, self.dead))
        kind = "skip transcoders" if self.shape.skip else "transcoders"
        return (
            f"{kind} of layers {', '.join(map(str, self.layers))}: mean FVU {mean:.4f} after {self.tokens:,} tokens, "
            f"{self.shape.latents:,} latents, k {self.shape.k}, {dead:,.0f} latents dead on held-out text"
        )


def save(folder: Path, trained: Trained, modules: Mapping[int, nn.Module]) -> None:
    """Write the weights, then result.json: a folder with result.json is complete."""
    tensors = {f"{layer}.{name}": tensor.detach().cpu().contiguous()
               for layer, module in modules.items() for name, tensor in module.state_dict().items()}  # fmt: skip
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    trained.save(folder)


def is_finished(folder: Path) -> bool:
    """Whether the folder holds trained transcoders."""
    return (folder / RESULT_NAME).is_file()


def load(folder: Path) -> tuple[Trained, dict[int, Transcoder]]:
    """Trained transcoders, in eval mode, float32, by layer.

    Raises:
        CheckpointError: a file is missing or damaged, or weights do not fit the sizes.
    """
    trained = Trained.load(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: unreadable ({error}); run `{Trained.COMMAND}` again") from None
    modules: dict[int, Transcoder] = {}
    for layer in trained.layers:
        with torch.device("meta"):
            module = Transcoder(trained.shape)
        own = {name.removeprefix(f"{layer}."): one for name, one in tensors.items() if name.startswith(f"{layer}.")}
        try:
            module.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{folder / WEIGHTS}: layer {layer}: {' '.join(str(error).split())}") from None
        modules[layer] = module.eval().requires_grad_(False)
    return trained, modules


def digest(modules: Mapping[int, nn.Module]) -> str:
    """Equal for transcoders of equal layers and weights."""
    content = "".join(f"{layer} {weights_digest(module)}\n" for layer, module in sorted(modules.items()))
    return hashlib.sha256(content.encode()).hexdigest()
