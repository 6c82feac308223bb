"""Further contents of routing statistics: moments with a score, firing counts, maxima, co-activation.

Each is a few tensors, kept in the statistics' file under its name. docs/architecture.md explains the dims; C stands for
labels, N for chosen experts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from monet.errors import CheckpointError

# Variances below this share of the mean square are rounding errors.
_NO_SPREAD = 1e-10
# One weight is larger than another only if it is larger by this factor: the last bits of float32 depend on the number
# of sequences in a forward pass, and on their pads.
EQUAL = 1 + 1e-5


@dataclass(frozen=True)
class Extra:
    """Tensors that are added up together."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.contiguous() for name, value in values.items() if value is not None}

    def check(self, num_labels: int, num_groups: int, num_keys: int) -> None:
        """Raise CheckpointError unless all tensors belong to statistics of this size and are finite."""
        sizes = {"C": num_labels, "R": num_groups, "E": num_keys}
        for name, tensor in self.tensors().items():
            dims = name.rpartition("_")[2]
            wanted = [sizes[dim] for dim in dims if dim in sizes] if dims.isupper() else []
            if list(tensor.shape[: len(wanted)]) != wanted or not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"{type(self).__name__.lower()} {name} of shape {tuple(tensor.shape)}: does not fit {num_labels} "
                    f"labels, {num_groups} groups and E = {num_keys}, or is not finite; run `monet stats` again"
                )

    def merge(self, other: Self, parts_before: int) -> Self:
        """The sum of both passes; `parts_before` is the number of parts in this one."""
        raise NotImplementedError


@dataclass(frozen=True)
class ScoreMoments(Extra):
    """Sums over scored tokens. They give the correlation of each expert's weight w with the score y.

    Args:
        tokens: int64 scalar, scored tokens.
        score_sum, score_squares: float64 scalars, sums of y and y^2.
        score_min, score_max: float64 scalars; always finite, because there is at least one token.
        weight_scores_REE: float64, sum of w * y.
        weight_squares_REE: float64, sum of w^2.
    """

    tokens: Tensor
    score_sum: Tensor
    score_squares: Tensor
    score_min: Tensor
    score_max: Tensor
    weight_scores_REE: Tensor
    weight_squares_REE: Tensor

    def correlations(self, weight_sums_REE: Tensor) -> Tensor:
        """Pearson's r of weight and score over the tokens, (R, E, E) float64; NaN if weight or score does not vary.

        A spread below 1e-5 of the size (root mean square) counts as none, because float64 sums do not resolve it.

        Args:
            weight_sums_REE: sum of w over the same tokens.
        """
        n = self.tokens.double()
        squares_REE = n * self.weight_squares_REE
        spread_REE = squares_REE - weight_sums_REE.square()
        spread_REE[spread_REE <= _NO_SPREAD * squares_REE] = torch.nan
        squares = n * self.score_squares
        spread = squares - self.score_sum.square()
        if bool(spread <= _NO_SPREAD * squares):
            spread = torch.full_like(spread, torch.nan)
        shared_REE = n * self.weight_scores_REE - weight_sums_REE * self.score_sum
        return (shared_REE / (spread_REE * spread).sqrt()).clamp(-1.0, 1.0)

    def merge(self, other: Self, parts_before: int) -> Self:
        """The sum of both passes."""
        return dataclasses.replace(
            self,
            tokens=self.tokens + other.tokens,
            score_sum=self.score_sum + other.score_sum,
            score_squares=self.score_squares + other.score_squares,
            score_min=torch.minimum(self.score_min, other.score_min),
            score_max=torch.maximum(self.score_max, other.score_max),
            weight_scores_REE=self.weight_scores_REE + other.weight_scores_REE,
            weight_squares_REE=self.weight_squares_REE + other.weight_squares_REE,
        )


@dataclass(frozen=True)
class Firing(Extra):
    """Number of tokens of each label at which an expert was active.

    Args:
        fired_CREE: int64, tokens at which its weight was above zero.
        strongest_CREE: int64, tokens at which no expert of the group had a larger weight; ties count for the lowest id.
        threshold: float64 scalar, or None.
        above_CREE: int64, tokens at which its weight was above `threshold`; None without a threshold.
    """

    fired_CREE: Tensor
    strongest_CREE: Tensor
    threshold: Tensor | None = None
    above_CREE: Tensor | None = None

    def merge(self, other: Self, parts_before: int) -> Self:
        """The sum of both passes.

        Raises:
            CheckpointError: the passes counted above different thresholds.
        """
        mine, theirs = (None if part.threshold is None else float(part.threshold) for part in (self, other))
        if mine != theirs:
            raise CheckpointError(f"firing counted above {mine} and above {theirs} does not add up; use one threshold")
        above_CREE = None
        if self.above_CREE is not None and other.above_CREE is not None:
            above_CREE = self.above_CREE + other.above_CREE
        return dataclasses.replace(
            self,
            fired_CREE=self.fired_CREE + other.fired_CREE,
            strongest_CREE=self.strongest_CREE + other.strongest_CREE,
            above_CREE=above_CREE,
        )


@dataclass(frozen=True)
class Maxima(Extra):
    """Each expert's largest weight at a token, and the first token in reading order that had it.

    Weights that differ by a factor of up to 1 + 1e-5 count as equal. In reading order, a token takes the place of an
    earlier one only if its weight is larger by more than this factor. Batch size and padding change the weights of a
    float32 model by less, so they do not decide between equal weights.

    Args:
        weight_REE: float64, the weight at the place; 0 if the expert was never active. The largest weight of all is
            at most (1 + 1e-5) times as large.
        place_REEP: int64, -1 if the expert was never active. P holds four numbers. First the pass, an index into
            `provenance["parts"]`. Then the window, by its number in the data of that pass. Then the document in which
            the window begins, -1 if its name is not a number of up to 18 digits. Last the token's position in the
            window, without pads.
    """

    weight_REE: Tensor
    place_REEP: Tensor

    def merge(self, other: Self, parts_before: int) -> Self:
        """The maxima of both passes."""
        theirs_REEP = other.place_REEP.clone()
        theirs_REEP[..., 0] += parts_before * (theirs_REEP[..., 0] >= 0)
        larger_REE = other.weight_REE > self.weight_REE * EQUAL
        return dataclasses.replace(
            self,
            weight_REE=torch.where(larger_REE, other.weight_REE, self.weight_REE),
            place_REEP=torch.where(larger_REE[..., None], theirs_REEP, self.place_REEP),
        )


@dataclass(frozen=True)
class Coactivation(Extra):
    """Number of tokens at which two chosen experts of a routing group were active together.

    Args:
        experts_RN: int64, chosen expert ids i*E + j; a group with fewer than N is padded with -1.
        tokens_RNN: int64, tokens at which both were active; the diagonal holds the tokens of one expert.
    """

    experts_RN: Tensor
    tokens_RNN: Tensor

    def merge(self, other: Self, parts_before: int) -> Self:
        """The sum of both passes.

        Raises:
            CheckpointError: the passes chose different experts.
        """
        if not torch.equal(self.experts_RN, other.experts_RN):
            raise CheckpointError(
                "co-activation of different experts does not add up; name the same experts in both passes"
            )
        return dataclasses.replace(self, tokens_RNN=self.tokens_RNN + other.tokens_RNN)


EXTRAS: dict[str, type[Extra]] = {
    "scores": ScoreMoments,
    "firing": Firing,
    "maxima": Maxima,
    "coactivation": Coactivation,
}
