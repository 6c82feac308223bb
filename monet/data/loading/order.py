"""A shuffled, endless order of windows that is computed, not stored, so that any position can be looked up directly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from monet.errors import ConfigError

_ROUNDS = 6
# Draws are dealt to the domains in blocks of this size, so each block keeps a share to within 1/4096.
_BLOCK = 4096


def permuted(positions: np.ndarray, size: int, key: str) -> np.ndarray:
    """Return the image of each position under a pseudo-random permutation of 0..size-1.

    The permutation is a Feistel network on the next even number of bits. It is applied again until the value is below
    `size`. It stores no table, so the cost does not depend on the corpus size. The result does not depend on the
    version of a random generator.

    Args:
        positions: int64, any shape, each in 0..size-1.
        size: number of elements, at least 1.
        key: text that names the permutation; another key gives an unrelated one.
    Returns:
        int64 of the same shape.
    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking).
    """
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=8 * _ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8")
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    half_mask = np.uint64((1 << int(half_bits)) - 1)

    def encrypt(values: np.ndarray) -> np.ndarray:
        left, right = values >> half_bits, values & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & half_mask)
        return (left << half_bits) | right

    image = encrypt(np.asarray(positions).astype(np.uint64).reshape(-1))
    while (outside := image >= np.uint64(size)).any():
        image[outside] = encrypt(image[outside])
    return image.astype(np.int64).reshape(np.shape(positions))


def _mixed(values: np.ndarray) -> np.ndarray:
    """The 64-bit finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _permuted_by_epoch(draws: np.ndarray, size: int, key: str) -> np.ndarray:
    """Endless draws: draw n is element n % size of the permutation of epoch n // size."""
    image = np.empty_like(draws)
    epochs = draws // size
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        image[chosen] = permuted(draws[chosen] % size, size, f"{key}/epoch {epoch}")
    return image


class WindowOrder:
    """Endless shuffled order over windows that are numbered domain by domain.

    Without weights, each epoch (one pass over all windows) is a new permutation of all windows. With weights, each
    domain has its own epochs: no window repeats within an epoch of its domain.

    Args:
        counts: windows of each domain, at least 1; the window ids of domain d follow those of domain d-1.
        seed: seed for the order.
        weights: share of the windows drawn from each domain by name, in the order of `counts` and in any unit (the
            weights are divided by their sum); None draws each window equally often.
    Attributes:
        slots: draws of each domain in a block; None without weights.
    Raises:
        ConfigError: a weight is negative, or too small for the block size.
    """

    def __init__(self, counts: Sequence[int], seed: int, weights: Mapping[str, float] | None = None) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.first = np.cumsum(self.counts) - self.counts
        self.num_windows = int(self.counts.sum())
        self.seed = seed
        self.slots: list[int] | None = None
        if weights is not None:
            self.slots = self._deal(np.array(list(weights.values()), dtype=np.float64), list(weights)).tolist()

    def _deal(self, weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return the number of slots of each domain in a block; the largest remainders get the slots left over."""
        if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
            raise ConfigError(f"mixture weights {weights.tolist()}: each must be 0 or more, and one must be above 0")
        exact = weights / weights.sum() * _BLOCK
        slots = np.floor(exact).astype(np.int64)
        order = np.argsort(slots - exact, kind="stable")
        slots[order[: _BLOCK - int(slots.sum())]] += 1
        for index in np.flatnonzero((weights > 0) & (slots == 0)):
            raise ConfigError(
                f"mixture weight {weights[index]} of {names[int(index)]!r} is below the smallest share, 1/{_BLOCK} of "
                "all; raise it or leave the domain out"
            )
        return slots

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Return the window ids at these positions of the endless order; int64 in, int64 of the same shape out."""
        positions = np.asarray(positions, dtype=np.int64)
        if self.slots is None:
            return _permuted_by_epoch(positions, self.num_windows, f"seed {self.seed}/all")
        blocks = positions // _BLOCK
        slots = np.empty_like(positions)
        for block in np.unique(blocks):
            chosen = blocks == block
            slots[chosen] = permuted(positions[chosen] % _BLOCK, _BLOCK, f"seed {self.seed}/block {block}")
        sizes = np.asarray(self.slots)
        ends = np.cumsum(sizes)
        domains = np.searchsorted(ends, slots, side="right")
        draws = blocks * sizes[domains] + slots - (ends - sizes)[domains]
        windows = np.empty_like(positions)
        for domain in np.unique(domains):
            chosen = domains == domain
            local = _permuted_by_epoch(draws[chosen], int(self.counts[domain]), f"seed {self.seed}/domain {domain}")
            windows[chosen] = self.first[domain] + local
        return windows
