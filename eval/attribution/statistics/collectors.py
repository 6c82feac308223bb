"""Collect from lists of active experts: moments with scores, counts, maxima, co-activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from monet.errors import ConfigError, DataError
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.statistics.extras import EQUAL, Coactivation, Extra, Firing, Maxima, ScoreMoments
from monet.eval.attribution.statistics.pairs import ActiveExperts
from monet.eval.core.inputs import Batch

# How often `monet stats` permutes the labels by default; one permutation costs a few percent of the pass.
PERMUTATIONS = 1


@dataclass(frozen=True)
class Wanted:
    """What to collect in addition to the sums of each label (and, for scored text, the moments with the scores).

    Args:
        firing: count the tokens at which each expert is active, and those at which it is the strongest.
        firing_above: also count the tokens at which its weight is above this number.
        maxima: keep each expert's largest weight and its place.
        coactivation: experts whose pairs are counted, by routing group.
        permutations: number of permutations under which the inputs of rules (sums, moments with scores, firing) are
            also collected. Each one shuffles labels and scores over the documents; see
            `monet.eval.attribution.statistics.shuffle`.
        permutation_seed: another seed gives other permutations.

    Raises:
        ConfigError: a threshold or a number is below 0, or an expert is named twice.
    """

    firing: bool = False
    firing_above: float | None = None
    maxima: bool = False
    coactivation: Mapping[int, Sequence[int]] | None = None
    permutations: int = PERMUTATIONS
    permutation_seed: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 0:
            raise ConfigError(f"permutations {self.permutations} must be at least 0; 0 permutes no labels")
        if self.firing_above is not None and not 0 <= self.firing_above < float("inf"):
            raise ConfigError(f"firing_above {self.firing_above} must be a finite weight of at least 0")
        for group, experts in (self.coactivation or {}).items():
            if len(set(experts)) != len(experts):
                raise ConfigError(f"coactivation names an expert of group {group} twice: {list(experts)}")


class Tokens(NamedTuple):
    """The X counted tokens of a batch, in reading order.

    Args:
        chosen_BT: bool, which tokens of the batch count; None if all count.
        label_X: int64.
        score_X: float64, or None.
        place_X3: int64: window, document and position in the window.
    """

    chosen_BT: Tensor | None
    label_X: Tensor
    score_X: Tensor | None
    place_X3: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device, exclusion: Exclusion) -> Tokens:
        """The tokens of a batch that are neither pads nor excluded."""
        shape = batch.input_ids_BT.shape
        mask_BT = torch.ones(shape, dtype=torch.bool)
        if batch.attention_mask_BT is not None:
            mask_BT = batch.attention_mask_BT != 0
        position_BT = mask_BT.cumsum(1) - 1
        place_BT = position_BT if batch.position_ids_BT is None else batch.position_ids_BT
        mask_BT &= exclusion.counted(batch.input_ids_BT, place_BT)
        numbers = [int(name) if name.isdecimal() and len(name) <= 18 else -1 for name in batch.document_B]
        document_B = torch.tensor(numbers)
        places = (batch.index_B[:, None].expand(shape), document_B[:, None].expand(shape), position_BT)
        return cls(
            None if bool(mask_BT.all()) else mask_BT.to(device),
            batch.label_B[:, None].expand(shape)[mask_BT].to(device),
            None if batch.score_BT is None else batch.score_BT[mask_BT].double().to(device),
            torch.stack([place_BT[mask_BT] for place_BT in places], dim=1).to(device),
        )

    def per_sequence(self, batch: Batch) -> Tensor:
        """(B,) int64 on the CPU, the number of counted tokens of each sequence of the batch."""
        return batch.num_tokens_B if self.chosen_BT is None else self.chosen_BT.sum(dim=1).cpu()


def check_scored(batch: Batch, scored: bool) -> None:
    """Refuse a batch without scores if others have them, and a batch with scores if others have none.

    Raises:
        DataError: the batch differs from the others; the message names its first window.
    """
    if scored != (batch.score_BT is not None):
        raise DataError(f"some sequences have scores and others do not, from window {int(batch.index_B[0])} on")


class Collector(Protocol):
    """Collects from lists of active experts of one routing group.

    `place_P` is the index of each list entry in a flat table (C, R, N), by the label of its token.
    """

    def add(self, group: int, active: ActiveExperts, place_P: Tensor, tokens: Tokens) -> None: ...

    def result(self) -> Extra: ...


def collectors_of(wanted: Wanted, sums_CREE: Tensor) -> dict[str, Collector]:
    """The collectors of everything wanted except the sums, by name; `sums_CREE` gives sizes and device."""
    found: dict[str, Collector] = {}
    if wanted.firing or wanted.firing_above is not None:
        found["firing"] = _Firing(sums_CREE, wanted.firing_above)
    if wanted.maxima:
        found["maxima"] = _Maxima(sums_CREE)
    if wanted.coactivation is not None:
        found["coactivation"] = _Coactivation(sums_CREE, wanted.coactivation)
    return found


class Scores:
    """Moments of weights and scores."""

    def __init__(self, sums_CREE: Tensor) -> None:
        self.weight_scores_REE = torch.zeros_like(sums_CREE[0])
        self.weight_squares_REE = torch.zeros_like(sums_CREE[0])
        self.tokens = 0
        self.sum, self.squares = (sums_CREE.new_zeros(()) for _ in range(2))
        self.least, self.most = sums_CREE.new_full((), torch.inf), sums_CREE.new_full((), -torch.inf)

    def start(self, tokens: Tokens) -> None:
        assert tokens.score_X is not None
        if not len(tokens.score_X):
            return
        self.tokens += len(tokens.score_X)
        self.sum += tokens.score_X.sum()
        self.squares += tokens.score_X.square().sum()
        self.least = torch.minimum(self.least, tokens.score_X.amin())
        self.most = torch.maximum(self.most, tokens.score_X.amax())

    def add(self, group: int, active: ActiveExperts, place_P: Tensor, tokens: Tokens) -> None:
        assert tokens.score_X is not None
        score_P = tokens.score_X.index_select(0, active.token_P)
        self.weight_scores_REE[group].view(-1).scatter_add_(0, active.expert_P, score_P * active.weight_P)
        self.weight_squares_REE[group].view(-1).scatter_add_(0, active.expert_P, active.weight_P.square())

    def result(self) -> ScoreMoments:
        return ScoreMoments(
            tokens=torch.tensor(self.tokens),
            score_sum=self.sum.cpu(),
            score_squares=self.squares.cpu(),
            score_min=self.least.cpu(),
            score_max=self.most.cpu(),
            weight_scores_REE=self.weight_scores_REE.cpu(),
            weight_squares_REE=self.weight_squares_REE.cpu(),
        )


class _Firing:
    """Counts of tokens at which experts are active, strongest, or above a threshold."""

    def __init__(self, sums_CREE: Tensor, threshold: float | None) -> None:
        self.threshold = threshold
        self.fired_CREE, self.strongest_CREE = (torch.zeros_like(sums_CREE, dtype=torch.int64) for _ in range(2))
        self.above_CREE = None if threshold is None else torch.zeros_like(self.fired_CREE)

    def add(self, group: int, active: ActiveExperts, place_P: Tensor, tokens: Tokens) -> None:
        token_P, _, weight_P = active
        _count(self.fired_CREE, place_P)
        if self.above_CREE is not None and self.threshold is not None:
            _count(self.above_CREE, place_P.index_select(0, (weight_P > self.threshold).nonzero().view(-1)))
        best_X = weight_P.new_zeros(len(tokens.label_X)).scatter_reduce_(0, token_P, weight_P, "amax")
        best_P = (weight_P == best_X.index_select(0, token_P)).nonzero().view(-1)
        # All experts of a token have one label and group, so the lowest place is that of the lowest id.
        nowhere = self.fired_CREE.numel()
        place_X = torch.full_like(tokens.label_X, nowhere)
        place_X.scatter_reduce_(0, token_P.index_select(0, best_P), place_P.index_select(0, best_P), "amin")
        _count(self.strongest_CREE, place_X[place_X < nowhere])

    def result(self) -> Firing:
        threshold = None if self.threshold is None else torch.tensor(self.threshold, dtype=torch.float64)
        above_CREE = None if self.above_CREE is None else self.above_CREE.cpu()
        return Firing(self.fired_CREE.cpu(), self.strongest_CREE.cpu(), threshold, above_CREE)


def _count(table_CREE: Tensor, place_P: Tensor) -> None:
    table_CREE.view(-1).scatter_add_(0, place_P, torch.ones_like(place_P))


class _Maxima:
    """Largest weights and their places; of weights that `EQUAL` counts as equal, the first in reading order."""

    def __init__(self, sums_CREE: Tensor) -> None:
        self.weight_REE = torch.zeros_like(sums_CREE[0])
        self.place_REE3 = torch.full((*self.weight_REE.shape, 3), -1, dtype=torch.int64, device=sums_CREE.device)

    def add(self, group: int, active: ActiveExperts, place_P: Tensor, tokens: Tokens) -> None:
        best_N, place_N3 = self.weight_REE[group].view(-1), self.place_REE3[group].flatten(0, 1)
        token_P, expert_P, weight_P = active
        while len(larger_P := (weight_P > best_N.index_select(0, expert_P) * EQUAL).nonzero().view(-1)):
            token_P, expert_P, weight_P = (column_P[larger_P] for column_P in (token_P, expert_P, weight_P))
            # Tokens come in their order, so an expert's first entry is its earliest. It takes the place. Later entries
            # are compared with it in turn, as if tokens came one by one.
            number_P = torch.arange(len(expert_P), device=expert_P.device)
            first_N = torch.full_like(best_N, len(expert_P), dtype=torch.int64)
            first_N.scatter_reduce_(0, expert_P, number_P, "amin")
            first_P = first_N[first_N < len(expert_P)]
            best_N[expert_P[first_P]] = weight_P[first_P]
            place_N3[expert_P[first_P]] = tokens.place_X3[token_P[first_P]]

    def result(self) -> Maxima:
        part_REE1 = torch.where(self.weight_REE > 0, 0, -1)[..., None]
        return Maxima(self.weight_REE.cpu(), torch.cat([part_REE1, self.place_REE3], dim=-1).cpu())


class _Coactivation:
    """Counts of tokens at which two of the chosen experts are active."""

    def __init__(self, sums_CREE: Tensor, chosen: Mapping[int, Sequence[int]]) -> None:
        _, R, E, _ = sums_CREE.shape
        for group, experts in chosen.items():
            if not 0 <= group < R or any(not 0 <= expert < E * E for expert in experts):
                raise ConfigError(
                    f"coactivation names experts {list(experts)} of group {group}; the model has groups 0 to {R - 1} "
                    f"and expert ids 0 to {E * E - 1}"
                )
        longest = max(map(len, chosen.values()), default=0)
        self.experts_RN = torch.full((R, longest), -1, dtype=torch.int64)
        for group, experts in chosen.items():
            self.experts_RN[group, : len(experts)] = torch.tensor(list(experts), dtype=torch.int64)
        self.column_RX = torch.full((R, E * E), -1, dtype=torch.int64)
        for group, experts in chosen.items():
            self.column_RX[group, self.experts_RN[group, : len(experts)]] = torch.arange(len(experts))
        self.column_RX = self.column_RX.to(sums_CREE.device)
        self.tokens_RNN = torch.zeros(R, longest, longest, dtype=torch.int64, device=sums_CREE.device)

    def add(self, group: int, active: ActiveExperts, place_P: Tensor, tokens: Tokens) -> None:
        column_P = self.column_RX[group].index_select(0, active.expert_P)
        chosen_P = (column_P >= 0).nonzero().view(-1)
        if not len(chosen_P):
            return
        N = self.tokens_RNN.shape[1]
        row_P = active.token_P.index_select(0, chosen_P)
        row_P -= int(row_P[0])  # tokens come in their order
        fired_X = torch.zeros((int(row_P[-1]) + 1) * N, device=row_P.device)
        fired_X.scatter_(0, row_P.mul_(N).add_(column_P.index_select(0, chosen_P)), 1.0)
        # Whole numbers below 2^24 are exact in float32 at any precision of the products.
        fired_XN = fired_X.view(-1, N)
        self.tokens_RNN[group] += (fired_XN.T @ fired_XN).long()

    def result(self) -> Coactivation:
        return Coactivation(self.experts_RN, self.tokens_RNN.cpu())
