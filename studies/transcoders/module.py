"""A transcoder with the TopK activation: a wide layer of latents that learns an MLP's output from its input.

    out = W_dec TopK(relu(W_enc x + b_enc)) + b_dec (+ W_skip x, with a skip path)

Transcoders come from "Transcoders Find Interpretable LLM Feature Circuits" (arXiv 2406.11944). The TopK activation and
the skip path come from "Transcoders Beat Sparse Autoencoders for Interpretability" (arXiv 2501.18823). As there, W_dec
starts as zero and b_dec as the mean output, and the columns of W_dec are not normalised. F latents, otherwise dims as
in docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monet.convert.dense.stand_in import Standardised
from monet.errors import ConfigError

_SKIP_RIDGE = 0.02  # relative to the variance of an input dimension


@dataclass(frozen=True)
class Shape:
    """Sizes of a transcoder.

    Args:
        width: size D of the MLP's inputs and outputs.
        latents: number F of latents.
        k: largest number of active latents per token.
        skip: whether there is an affine skip path.

    Raises:
        ConfigError: k is not from 1 to `latents`.
    """

    width: int
    latents: int
    k: int
    skip: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.latents:
            raise ConfigError(f"k {self.k} must be from 1 to the number of latents, {self.latents}")

    @classmethod
    def of_parameters(cls, parameters: int, width: int, k: int, skip: bool) -> Shape:
        """The shape whose number of parameters is nearest to a wanted one.

        Raises:
            ConfigError: there is no room for k latents.
        """
        rest = parameters - width - (width * width if skip else 0)
        return cls(width, max(0, round(rest / (2 * width + 1))), k, skip)

    @property
    def parameters(self) -> int:
        """Number of parameters of one layer's transcoder."""
        return self.latents * (2 * self.width + 1) + self.width + (self.width**2 if self.skip else 0)


@dataclass(frozen=True)
class Use:
    """How latents were used on some text.

    Attributes:
        active: mean number of latents above zero per token.
        used: latents that were ever above zero; the others are dead on this text.
    """

    active: float
    used: int


class Transcoder(Standardised):
    """A transcoder of one layer, (T, D) -> (T, D). Its weights are in standardised coordinates.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape.width)
        self.shape = shape
        self.encoder = nn.Linear(shape.width, shape.latents)
        self.decoder = nn.Linear(shape.latents, shape.width)
        self.skip = nn.Linear(shape.width, shape.width, bias=False) if shape.skip else None
        self._forget()

    def latents(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> (T, F): the k highest latents of each token, all others zero."""
        z_TF = self.encoder(self.centred(x_TD)).relu()
        highest = z_TF.topk(self.shape.k, sorted=False)
        return torch.zeros_like(z_TF).scatter(-1, highest.indices, highest.values)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> (T, D), both in the dense model's own units."""
        z_TF = self.latents(x_TD)
        if not self.training:
            self._count(z_TF)
        out_TD = self.decoder(z_TF)
        if self.skip is not None:
            out_TD = out_TD + self.skip(self.centred(x_TD))
        return out_TD * self.out_scale.to(out_TD.dtype)

    @property
    def columns_DF(self) -> Tensor:
        """What each latent adds to the output, in the dense model's own units."""
        return self.decoder.weight * self.out_scale

    @property
    def use(self) -> Use:
        """Use of the latents since the last call of `eval`."""
        return Use(self._active / max(self._tokens, 1), int(self._used_F.sum()))

    def train(self, mode: bool = True) -> Any:
        """As in nn.Module; `eval` starts the count of active latents again."""
        if not mode:
            self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        self._used_F = torch.zeros(self.shape.latents, dtype=torch.bool)
        self._active = self._tokens = 0

    @torch.no_grad()
    def _count(self, z_TF: Tensor) -> None:
        active_TF = z_TF > 0
        self._used_F |= active_TF.any(0).cpu()
        self._active += int(active_TF.sum())
        self._tokens += len(z_TF)


@torch.no_grad()
def start(transcoder: Transcoder, x_TD: Tensor, y_TD: Tensor, generator: torch.Generator) -> None:
    """Set a transcoder's coordinates and start weights from a sample of the MLP's inputs and outputs.

    Latents start with random inputs of unit variance and no output. The bias starts as the mean output, a skip path as
    the ridge regression of the output on the input.

    Args:
        transcoder: its weights and buffers change.
        x_TD, y_TD: the sample, float32.
        generator: for the random inputs.
    """
    transcoder.standardise(x_TD, y_TD)
    weight_FD = transcoder.encoder.weight
    weight_FD.copy_(torch.randn(weight_FD.shape, generator=generator) / weight_FD.shape[1] ** 0.5)
    transcoder.encoder.bias.zero_()
    transcoder.decoder.weight.zero_()
    target_TD = y_TD / transcoder.out_scale
    transcoder.decoder.bias.copy_(target_TD.mean(0))
    if transcoder.skip is not None:
        transcoder.skip.weight.copy_(ridge(transcoder.centred(x_TD), target_TD - target_TD.mean(0)))


def ridge(x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """(D_out, D_in) weight of the linear map from centred inputs of about unit variance to centred outputs."""
    normal_DD = x_TD.t() @ x_TD
    normal_DD.diagonal().add_(_SKIP_RIDGE * len(x_TD))
    return torch.linalg.solve(normal_DD, x_TD.t() @ y_TD).t()
