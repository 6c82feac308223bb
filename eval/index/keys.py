"""Numbers that order contexts and samples, each in one int64, so that no order of the text changes what is kept.

A context's key is its weight, then its window: larger weights first, and of equal weights the lower window first. A
sample's key is a random priority, then its window: larger priorities first. The priority is a hash of seed, unit,
window and position, so every process draws the same samples. Dims: P entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_WINDOWS = (1 << 32) - 1
MOST_POSITIONS = 1 << 16
_LOW32 = (1 << 32) - 1
_LOW31 = (1 << 31) - 1
# Odd numbers without a pattern in their bits, as int64.
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


def window_part(window_P: Tensor) -> Tensor:
    """The lower half of a key: a lower window has a larger number. At least 1 for windows below `MOST_WINDOWS`."""
    return _LOW32 - window_P


def weight_bits(weight_P: Tensor) -> Tensor:
    """The bits of float32 numbers that are not negative, as int32; they are ordered like the numbers."""
    return weight_P.float().view(torch.int32)


def keys_of(upper_P: Tensor, window_part_P: Tensor) -> Tensor:
    """Keys: the bits of weights or the priorities as upper halves, the parts of the windows as lower halves."""
    return (upper_P.long() << 32).bitwise_or_(window_part_P)


def windows_of(key: Tensor) -> Tensor:
    """The windows in keys, int64; `MOST_WINDOWS` in empty places."""
    return _LOW32 - (key & _LOW32)


def weights_of(key: Tensor) -> Tensor:
    """The float32 weights in the keys of contexts; 0 in empty places."""
    return (key >> 32).to(torch.int32).view(torch.float32)


def token_hashes(seed: int, window_P: Tensor, position_P: Tensor) -> Tensor:
    """A hash of each token's place in the text, int64."""
    return _mixed(_mixed(window_P + seed * 1_000_003) + position_P)


def unit_part(number: int) -> int:
    """The number that `priorities` adds for all units of a group, whose first unit has this number in the model."""
    return (number * _STEP + (1 << 63)) % (1 << 64) - (1 << 63)


def priorities(token_hash_P: Tensor, unit_P: Tensor) -> Tensor:
    """Random numbers in 0..2^31-1, int64; the largest are kept.

    Args:
        token_hash_P: from `token_hashes`, plus the group's `unit_part`.
        unit_P: int64, number of the unit in its group.
    """
    found_P = (unit_P * _STEP).add_(token_hash_P)
    found_P ^= found_P >> 31
    found_P *= _FIRST
    found_P >>= 33
    return found_P.bitwise_and_(_LOW31)


def _mixed(number_P: Tensor) -> Tensor:
    number_P = (number_P + 1) * _STEP
    number_P = (number_P ^ (number_P >> 31)) * _FIRST
    number_P = (number_P ^ (number_P >> 29)) * _SECOND
    return number_P ^ (number_P >> 32)
