"""What an index collects about the units of one routing group, in tables of fixed size.

Every table is a sum of whole numbers, or a choice of the best entries by keys that differ. So neither the order of the
text nor its division into parts changes a bit of the result. Sums of weights are whole multiples of 2^-30, sums of
squares of 2^-32.

Dims: U units of a group, Q contexts of a unit, A = 8 intervals of weight, Z = 2 samples of an interval, Y = 16 bins.
C labels, V token ids, P list entries, X counted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from monet.eval.attribution.statistics.pairs import ActiveExperts
from monet.eval.index.best import Best, places_of
from monet.eval.index.keys import (
    MOST_POSITIONS,
    keys_of,
    priorities,
    token_hashes,
    unit_part,
    weight_bits,
    window_part,
)

BINS = 16
INTERVALS = 8
SAMPLES = 2
SUM_SCALE, SQUARE_SCALE = float(1 << 30), float(1 << 32)
_POSITION_BITS = 16
# Entries that pass through the tables at once; each takes about twenty arrays of 8 bytes.
_ENTRIES = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tables of one routing group.

    Args:
        units: U.
        top: Q.
        labels: C.
        heads: H; weights are at most H.
        vocabulary: V, for exact counts of firing tokens; 0 keeps no counts.
        seed: seed of the samples.
    """

    units: int
    top: int
    labels: int
    heads: int
    vocabulary: int
    seed: int

    @property
    def highest(self) -> int:
        """The largest weight is at most 2 to this power."""
        return math.ceil(math.log2(self.heads))


class Places(NamedTuple):
    """The X counted tokens of a forward pass, as the tables need them.

    Args:
        label_X: int64.
        id_X: int64 token ids.
        window_part_X: int64, see `window_part`.
        row_X: int64, number of the window within the forward pass.
        position_X: int64, below 65,536.
        hash_X: int64, see `token_hashes`.
        rows: number of windows of the forward pass.
        label: the label of all tokens; None if they have several.
    """

    label_X: Tensor
    id_X: Tensor
    window_part_X: Tensor
    row_X: Tensor
    position_X: Tensor
    hash_X: Tensor
    rows: int
    label: int | None

    @classmethod
    def of(
        cls, label_X: Tensor, id_X: Tensor, window_X: Tensor, row_X: Tensor, position_X: Tensor, seed: int
    ) -> Places:
        """From the tokens' labels, ids, windows, rows and positions; int64 each."""
        hash_X = token_hashes(seed, window_X, position_X)
        rows = int(row_X.max()) + 1 if len(row_X) else 0
        labels = label_X.unique().tolist()
        label = labels[0] if len(labels) == 1 else None
        return cls(label_X, id_X, window_part(window_X), row_X, position_X, hash_X, rows, label)


@dataclass(frozen=True)
class State:
    """All tables of a group, as tensors on the CPU.

    Args:
        top_key_UQ: int64, keys of contexts.
        top_position_UQ: int32.
        sample_key_NZ: int64, keys of samples; N = U*A rows.
        sample_payload_NZ: int64, bits of the weight and the position.
        histogram_UY: int32.
        sum_CU: int64.
        square_U: int64.
        token_UV: int32; (0,) without counts of firing tokens.
    """

    top_key_UQ: Tensor
    top_position_UQ: Tensor
    sample_key_NZ: Tensor
    sample_payload_NZ: Tensor
    histogram_UY: Tensor
    sum_CU: Tensor
    square_U: Tensor
    token_UV: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Tables:
    """The tables of one routing group.

    Args:
        group: number of the group.
        sizes: sizes of the tables.
        device: device of the tables.
    """

    def __init__(self, group: int, sizes: Sizes, device: torch.device) -> None:
        self.sizes = sizes
        self._unit_part = unit_part(group * sizes.units)
        self._ones_P = torch.ones(0, dtype=torch.int32, device=device)
        U, C = sizes.units, sizes.labels
        self.top = Best(U, sizes.top, device, torch.int32)
        self.samples = Best(U * INTERVALS, SAMPLES, device)
        self.histogram_X = torch.zeros(U * BINS, dtype=torch.int32, device=device)
        self.sum_X = torch.zeros(C * U, dtype=torch.int64, device=device)
        self.square_U = torch.zeros(U, dtype=torch.int64, device=device)
        self.token_X = torch.zeros(U * sizes.vocabulary, dtype=torch.int32, device=device)

    def add(self, lists: Iterator[ActiveExperts], places: Places) -> None:
        """Add the active units of a forward pass over whole windows.

        Args:
            lists: active units, in the order of the tokens.
            places: the tokens of the forward pass.
        """
        hash_X = places.hash_X + self._unit_part
        contexts: list[tuple[Tensor, Tensor, Tensor]] = []
        for active in _joined(lists):
            if len(self._ones_P) < len(active.token_P):
                self._ones_P = torch.ones(2 * len(active.token_P), dtype=torch.int32, device=hash_X.device)
            self._add_sums(active, places)
            bits_P = weight_bits(active.weight_P)
            cell_P = (active.expert_P * BINS).add_(bins(bits_P, self.sizes.highest))
            self._count(self.histogram_X, cell_P)
            self._add_samples(active, bits_P, cell_P, hash_X, places)
            contexts.append(self._contexts(active, bits_P))
        if contexts:
            unit_P, token_P, bits_P = (torch.cat(column) for column in zip(*contexts, strict=True))
            self._add_contexts(unit_P, token_P, bits_P, places)

    def state(self) -> State:
        """The tables on the CPU."""
        sizes = self.sizes
        tensors = (
            self.top.key_NQ,
            self.top.payload_NQ,
            self.samples.key_NQ,
            self.samples.payload_NQ,
            self.histogram_X.view(-1, BINS),
            self.sum_X.view(sizes.labels, -1),
            self.square_U,
            self.token_X.view(sizes.units, -1) if sizes.vocabulary else self.token_X,
        )
        return State(*(tensor.cpu() for tensor in tensors))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tables of an earlier state."""
        state = State(**tensors)
        self.top.restore(state.top_key_UQ, state.top_position_UQ)
        self.samples.restore(state.sample_key_NZ, state.sample_payload_NZ)
        for table_X, tensor in (
            (self.histogram_X, state.histogram_UY),
            (self.sum_X, state.sum_CU),
            (self.square_U, state.square_U),
            (self.token_X, state.token_UV),
        ):
            table_X.copy_(tensor.flatten())

    def _add_sums(self, active: ActiveExperts, places: Places) -> None:
        token_P, unit_P, weight_P = active
        U, V = self.sizes.units, self.sizes.vocabulary
        whole_P = (weight_P * SUM_SCALE).round_().long()
        if places.label is not None:
            self.sum_X[places.label * U : (places.label + 1) * U].scatter_add_(0, unit_P, whole_P)
        else:
            place_P = (places.label_X * U).index_select(0, token_P).add_(unit_P)
            self.sum_X.scatter_add_(0, place_P, whole_P)
        self.square_U.scatter_add_(0, unit_P, weight_P.square().mul_(SQUARE_SCALE).round_().long())
        if V:
            self._count(self.token_X, (unit_P * V).add_(places.id_X.index_select(0, token_P)))

    def _count(self, table_X: Tensor, place_P: Tensor) -> None:
        table_X.scatter_add_(0, place_P, self._ones_P[: len(place_P)])

    def _add_samples(
        self, active: ActiveExperts, bits_P: Tensor, cell_P: Tensor, hash_X: Tensor, places: Places
    ) -> None:
        """Offer samples; `cell_P` is the entries' place in the histogram, of which two bins are one interval."""
        token_P, unit_P, _ = active
        priority_P = priorities(hash_X.index_select(0, token_P), unit_P)
        row_P = cell_P >> 1
        good_P = places_of(priority_P >= self.samples.bar_N.index_select(0, row_P))
        token_P = token_P.index_select(0, good_P)
        key_P = keys_of(priority_P.index_select(0, good_P), places.window_part_X.index_select(0, token_P))
        payload_P = bits_P.index_select(0, good_P).long() << _POSITION_BITS
        payload_P |= places.position_X.index_select(0, token_P)
        self.samples.offer(row_P.index_select(0, good_P), key_P, payload_P)

    def _contexts(self, active: ActiveExperts, bits_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries that may be among the best contexts: unit, token, and bits of the weight."""
        good_P = places_of(bits_P >= self.top.bar_N.index_select(0, active.expert_P))
        return (
            active.expert_P.index_select(0, good_P),
            active.token_P.index_select(0, good_P),
            bits_P.index_select(0, good_P),
        )

    def _add_contexts(self, unit_P: Tensor, token_P: Tensor, bits_P: Tensor, places: Places) -> None:
        """Offer the strongest token of each unit and window; of equally strong ones, the first."""
        key_P = keys_of(bits_P, places.window_part_X.index_select(0, token_P))
        good_P = places_of(key_P > self.top.key_NQ[:, -1].index_select(0, unit_P))
        if not len(good_P):
            return
        unit_P, token_P, bits_P = (column_P.index_select(0, good_P) for column_P in (unit_P, token_P, bits_P))
        cell_P = (unit_P * places.rows).add_(places.row_X.index_select(0, token_P))
        cell_K, which_P = cell_P.unique(return_inverse=True)
        last = MOST_POSITIONS - 1
        value_P = (bits_P.long() << _POSITION_BITS).add_(last - places.position_X.index_select(0, token_P))
        value_K = torch.zeros_like(cell_K).scatter_reduce_(0, which_P, value_P, "amax")
        window_part_K = torch.zeros_like(cell_K)
        window_part_K[which_P] = places.window_part_X.index_select(0, token_P)  # equal for all entries of a cell
        unit_K = cell_K // places.rows
        self.top.offer(unit_K, keys_of(value_K >> _POSITION_BITS, window_part_K), last - (value_K & last))


def bins(bits: Tensor, highest: int) -> Tensor:
    """Bins of weights on a logarithmic scale, 0 to 15, in the dtype of `bits`.

    Bin 15 holds the weights from 2^(highest-1) to 2^highest. Each lower bin ends at half the weight at which the next
    one ends. Bin 0 also holds all smaller weights.

    Args:
        bits: bits of float32 weights.
        highest: see `Sizes`.
    """
    return (bits >> 23).sub_(127 + highest - BINS).clamp_(0, BINS - 1)


def bin_edges(highest: int) -> list[float]:
    """The 17 edges of the bins; the first is 0."""
    return [0.0, *(2.0 ** (highest - BINS + number) for number in range(1, BINS + 1))]


def _joined(lists: Iterator[ActiveExperts]) -> Iterator[ActiveExperts]:
    """Fewer, longer lists: each step below has a fixed cost."""
    waiting: list[ActiveExperts] = []
    entries = 0
    for active in lists:
        if waiting and entries + len(active.token_P) > _ENTRIES:
            yield _concatenated(waiting)
            waiting, entries = [], 0
        waiting.append(active)
        entries += len(active.token_P)
    if waiting:
        yield _concatenated(waiting)


def _concatenated(lists: list[ActiveExperts]) -> ActiveExperts:
    if len(lists) == 1:
        return lists[0]
    return ActiveExperts(*(torch.cat(column) for column in zip(*lists, strict=True)))
