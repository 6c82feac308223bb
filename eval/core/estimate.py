"""Values with their intervals: the one place where suites turn resamples into numbers.

`Draws` holds a quantity: its value on the data, and the same quantity on every bootstrap resample. Two quantities from
the same resamples are paired, and their difference is `a - b`.

Dims: Q resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from monet.eval.core.bootstrap import Bootstrap, interval


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval.

    Args:
        value: value on the data.
        low, high: ends of the interval; None if no interval can be drawn, for example for a single problem.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of an interval. The interval must exist."""
        assert self.low is not None and self.high is not None, "no interval was drawn"
        return self.low, self.high

    def times(self, number: float) -> Estimate:
        """The estimate in another unit: `number` > 0 of the new unit are one of this; 100 points are a share of 1."""
        low, high = (None if end is None else number * end for end in (self.low, self.high))
        return Estimate(number * self.value, low, high)


ZERO = Estimate(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Draws:
    """A quantity on the data and on every resample of the data.

    Args:
        value: value on the data.
        draws_Q: float64, value on each resample; NaN if no resample can be drawn, for example from a single problem.
    """

    value: float
    draws_Q: NDArray[np.float64]

    def __add__(self, other: Draws) -> Draws:
        return Draws(self.value + other.value, self.draws_Q + other.draws_Q)

    def __truediv__(self, number: float) -> Draws:
        return Draws(self.value / number, self.draws_Q / number)

    def __sub__(self, other: Draws) -> Draws:
        """The paired change from `other` to this quantity; both must come from the same resamples."""
        return Draws(self.value - other.value, self.draws_Q - other.draws_Q)

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """The value with its central percentile interval; without ends if no interval can be drawn."""
        if np.isnan(self.draws_Q).any():
            return Estimate(self.value, None, None)
        return Estimate(self.value, *interval(self.draws_Q, bootstrap.confidence))


def mean_of(parts: Sequence[Draws]) -> Draws:
    """Unweighted mean of quantities, resample by resample.

    Raises:
        ValueError: `parts` is empty.
    """
    if not parts:
        raise ValueError("a mean needs at least one quantity")
    return reduce(add, parts) / len(parts)


def one_of(parts: Sequence[Draws], bootstrap: Bootstrap) -> Draws:
    """One of several similar quantities, drawn at random, for example one of the random controls.

    The value is the mean over them. Each resample takes one of them at random, so the interval holds the spread over
    controls and the spread over text. Equal seeds of `bootstrap` choose the same controls.

    Raises:
        ValueError: `parts` is empty.
    """
    if not parts:
        raise ValueError("one_of needs at least one quantity, got none")
    resamples = len(parts[0].draws_Q)
    chosen_Q = np.random.default_rng([bootstrap.seed, 1]).integers(len(parts), size=resamples)
    draws_Q = np.empty(resamples)
    for number, part in enumerate(parts):
        taken_Q = chosen_Q == number
        draws_Q[taken_Q] = part.draws_Q[taken_Q]
    return Draws(float(np.mean([part.value for part in parts])), draws_Q)
