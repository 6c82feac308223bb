"""List the active experts of each token and their weights, from routing probabilities that are mostly zero.

Inactive keys have a probability of exactly zero. So at E = 512, H = 8 and about 8 keys for each head, about 500 of the
262,144 experts are active at a token. Listing them costs less than one product over all experts. It also gives the
weight of each expert, which squares, counts and maxima need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monet.eval.attribution.statistics import limits


class ActiveExperts(NamedTuple):
    """P experts with a weight above zero, over some consecutive tokens; no expert is listed twice at one token.

    Args:
        token_P: int64, index of the token along T.
        expert_P: int64, expert id i*E + j.
        weight_P: float64, `sum_h g1[h,i] * g2[h,j]`.
    """

    token_P: Tensor
    expert_P: Tensor
    weight_P: Tensor


def num_pairs(g1_THE: Tensor, g2_THE: Tensor) -> int:
    """Number of products of two nonzero probabilities of one head, over all tokens: the length of unjoined lists."""
    active1_TH, active2_TH = ((g_THE != 0).sum(-1) for g_THE in (g1_THE, g2_THE))
    return int((active1_TH * active2_TH).sum())


class ExpertLister:
    """Lists the active experts of every token, and reuses its working memory.

    Args:
        num_keys: E.
        device: device of the probabilities.
    """

    def __init__(self, num_keys: int, device: torch.device) -> None:
        self.num_experts = num_keys**2
        cells = limits.PAIR_CELLS.get(device.type, limits.PAIR_CELLS["cpu"])
        self.tokens_at_once = max(1, min(limits.PAIR_TOKENS, cells // self.num_experts))
        self._table_X = torch.empty(self.tokens_at_once * self.num_experts, dtype=torch.int32, device=device)
        self._numbers_P = torch.empty(0, dtype=torch.int64, device=device)

    def lists(self, g1_THE: Tensor, g2_THE: Tensor) -> Iterator[ActiveExperts]:
        """Active experts, some tokens at a time.

        Args:
            g1_THE, g2_THE: routing probabilities, none negative, exactly zero at inactive keys; not NaN.
        """
        for start in range(0, g1_THE.shape[0], self.tokens_at_once):
            rows = slice(start, start + self.tokens_at_once)
            yield from self._lists(g1_THE[rows], g2_THE[rows], start)

    def _lists(self, g1_THE: Tensor, g2_THE: Tensor, start: int) -> Iterator[ActiveExperts]:
        T, H, E = g1_THE.shape
        row1_K, key1_K, value1_K = _entries(g1_THE)
        row2_K, key2_K, value2_K = _entries(g2_THE)
        # An entry of the first axis is paired with the entries of the second that have the same token and head.
        partners_X = torch.bincount(row2_K, minlength=T * H)
        partners_K = partners_X.index_select(0, row1_K)
        ends_K = partners_K.cumsum(0)
        if T > 1 and int(ends_K[-1]) > limits.PAIR_ENTRIES:
            yield from self._lists(g1_THE[: T // 2], g2_THE[: T // 2], start)
            yield from self._lists(g1_THE[T // 2 :], g2_THE[T // 2 :], start + T // 2)
            return
        first_P = torch.repeat_interleave(partners_K)
        begin_K = (partners_X.cumsum(0) - partners_X).index_select(0, row1_K) - (ends_K - partners_K)
        if len(self._numbers_P) < len(first_P):
            self._numbers_P = torch.arange(2 * len(first_P), device=first_P.device)
        second_P = begin_K.index_select(0, first_P).add_(self._numbers_P[: len(first_P)])
        token_K = _divided(row1_K, H)
        cell_K = token_K * E**2 + key1_K * E
        cell_P = cell_K.index_select(0, first_P).add_(key2_K.index_select(0, second_P))
        weight_P = value1_K.index_select(0, first_P).mul_(value2_K.index_select(0, second_P))
        speaks_P, weight_P = self._joined(cell_P, weight_P)
        token_P = token_K.index_select(0, first_P.index_select(0, speaks_P))
        expert_P = cell_P.index_select(0, speaks_P).sub_(token_P * E**2)
        yield ActiveExperts(token_P.add_(start), expert_P, weight_P)

    def _joined(self, cell_P: Tensor, weight_P: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the weights of several heads in a cell: the place of one entry for each cell, and the cells' sums."""
        # All entries of a cell write their number to the cell, and the number that stays represents it. Only cells that
        # were just written are read, so the table is never cleared.
        number_P = torch.arange(len(cell_P), dtype=torch.int32, device=cell_P.device)
        self._table_X.scatter_(0, cell_P, number_P)
        speaker_P = self._table_X.gather(0, cell_P)
        sums_P = torch.zeros_like(weight_P).scatter_add_(0, speaker_P.long(), weight_P)
        speaks_P = (speaker_P == number_P).nonzero().view(-1)
        return speaks_P, sums_P.index_select(0, speaks_P)


def active_keys(g_THE: Tensor, first_id: int = 0) -> ActiveExperts:
    """Active keys of one side, each with its weight `sum_h g[h, key]`; no key is listed twice at one token.

    Args:
        g_THE: routing probabilities of one side, as for `ExpertLister.lists`.
        first_id: number of key 0 in `expert_P`.
    """
    E = g_THE.shape[-1]
    sums_TE = g_THE.double().sum(1).view(-1)
    cell_P = _nonzero(sums_TE)
    token_P = _divided(cell_P, E)
    return ActiveExperts(token_P, cell_P - token_P * E + first_id, sums_TE.index_select(0, cell_P))


def _entries(g_THE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row (token, head), key and float64 value of the nonzero entries."""
    E = g_THE.shape[-1]
    g_X = g_THE.reshape(-1)
    place_K = _nonzero(g_X)
    row_K = _divided(place_K, E)
    return row_K, place_K - row_K * E, g_X.index_select(0, place_K).double()


def _nonzero(number_X: Tensor) -> Tensor:
    """Places of the numbers that are not zero; numpy finds rare ones several times faster than torch."""
    return torch.from_numpy(np.flatnonzero((number_X != 0).numpy())) if number_X.is_cpu else number_X.nonzero().view(-1)


def _divided(number_K: Tensor, divisor: int) -> Tensor:
    """Integer quotients; numpy turns the division by a constant into a multiplication."""
    return torch.from_numpy(number_K.numpy() // divisor) if number_K.is_cpu else number_K // divisor
