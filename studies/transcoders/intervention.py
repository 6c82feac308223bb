"""Removal of latents from a dense model: what a transcoder's latent adds to an MLP's output is subtracted from it.

The dense model keeps its MLPs, so without a removal nothing changes, however large a transcoder's error is. L layers
with a transcoder, F latents of each, otherwise dims as in docs/architecture.md.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from monet.errors import CheckpointError
from monet.masks.controls import ControlKind, control_keep, removed_mass
from monet.masks.expert_mask import keep_digest
from studies.transcoders.folder import digest
from studies.transcoders.module import Transcoder

# The keep-weights of the open blocks, by MLP and transcoder: nested blocks multiply.
_OPEN: WeakKeyDictionary[nn.Module, dict[int, list[Tensor]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Latents:
    """Transcoders of some layers of a dense model.

    Args:
        modules: by layer, in eval mode; all of one shape.
    """

    modules: Mapping[int, Transcoder]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest(self.modules))

    @property
    def layers(self) -> list[int]:
        return sorted(self.modules)

    def ordered(self) -> list[Transcoder]:
        """The transcoders in the order of their layers."""
        return [self.modules[layer] for layer in self.layers]

    def mlps(self, model: Any) -> list[nn.Module]:
        """The MLPs that they imitate.

        Raises:
            CheckpointError: the model has no such layer, or another width.
        """
        blocks, width = model.get_decoder().layers, self.ordered()[0].shape.width
        if self.layers[-1] >= len(blocks) or model.config.hidden_size != width:
            raise CheckpointError(
                f"transcoders of layers {self.layers} and width {width} do not fit a model of {len(blocks)} layers and "
                f"width {model.config.hidden_size}"
            )
        return [blocks[layer].mlp for layer in self.layers]


@dataclass(frozen=True)
class LatentMask:
    """Keep-weights of latents: 1 keeps a latent's part of the MLP's output, 0 removes it; an `Intervention`.

    Args:
        latents: the transcoders.
        keep_LF: bool, or float32 of at least 0.
        provenance: JSON-able notes on how it was made.
    """

    latents: Latents
    keep_LF: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return "latent"

    @property
    def group(self) -> str:
        return "layer"

    @property
    def digest(self) -> str:
        """Equal for equal keep-weights of equal transcoders."""
        return hashlib.sha256(f"{self.latents.digest} {keep_digest(self.keep_LF)}".encode()).hexdigest()

    @property
    def num_units(self) -> int:
        """Number of all latents."""
        return self.keep_LF.numel()

    @property
    def removed_per_group(self) -> list[int]:
        """Number of changed latents in each layer with a transcoder."""
        return (self.keep_LF != 1).sum(1).tolist()

    @property
    def num_removed(self) -> int:
        """Number of changed latents."""
        return sum(self.removed_per_group)

    def check_fits(self, model: nn.Module) -> None:
        """Raise CheckpointError unless the model has the layers, and each transcoder the mask's number of latents."""
        self.latents.mlps(model)
        wanted = [one.shape.latents for one in self.latents.ordered()]
        layers, count = self.keep_LF.shape
        if wanted != [count] * layers:
            raise CheckpointError(f"a mask of {layers} layers of {count} latents, but the transcoders have {wanted}")

    @contextlib.contextmanager
    def applied_to(self, model: Any) -> Iterator[Any]:
        """Change the latents in every forward pass inside the block."""
        with contextlib.ExitStack() as stack:
            for mlp, transcoder, keep_F in zip(
                self.latents.mlps(model), self.latents.ordered(), self.keep_LF, strict=True
            ):
                if bool((keep_F != 1).any()):
                    stack.enter_context(_removing(mlp, transcoder, keep_F))
            yield model

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> LatentMask:
        """A random mask that matches this one in every layer; see `monet.masks.controls.control_keep`."""
        keep_LF = control_keep(self.keep_LF, kind, seed, weights)
        notes = {"made_by": "control", "kind": kind, "seed": seed, "of": self.provenance}
        return LatentMask(self.latents, keep_LF, notes)

    def taken(self, weights: Tensor) -> float:
        """The sum of (L, F) weights that the mask takes."""
        return removed_mass(self.keep_LF, weights)

    def sites(self, model: nn.Module) -> list[nn.Module]:
        """The MLPs whose outputs change, from the first layer to the last."""
        return self.latents.mlps(model)


@contextlib.contextmanager
def _removing(mlp: nn.Module, transcoder: Transcoder, keep_F: Tensor) -> Iterator[None]:
    """Subtract the removed latents' parts from an MLP's output inside the block."""
    open_here = _OPEN.setdefault(mlp, {})
    keeps = open_here.setdefault(id(transcoder), [])
    handle = None if keeps else mlp.register_forward_hook(partial(_without, transcoder, keeps))
    keeps.append(keep_F.float())
    try:
        yield
    finally:
        keeps.pop()
        if handle is not None:
            handle.remove()
            del open_here[id(transcoder)]


def _without(
    transcoder: Transcoder, keeps: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...], out_BTD: Tensor
) -> Tensor:
    """A hook: the MLP's output without the removed parts."""
    x_BTD = inputs[0]
    transcoder.to(x_BTD.device)
    keep_F = keeps[0].clone()
    for other_F in keeps[1:]:
        keep_F *= other_F
    lost = (keep_F != 1).nonzero().flatten().to(x_BTD.device)
    z_TX = transcoder.latents(x_BTD.flatten(0, -2))[:, lost] * (1 - keep_F.to(x_BTD.device)[lost])
    return out_BTD - (z_TX @ transcoder.columns_DF[:, lost].t()).view(out_BTD.shape).to(out_BTD.dtype)
