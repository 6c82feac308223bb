"""Values with their intervals: the one place where a suite turns resamples into numbers.

A quantity is carried as `Draws`: its value on the data, and the same quantity on every bootstrap resample. Two
quantities that were drawn from the same resamples are paired, and their difference is `a - b`.

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
        value: on the data as they are.
        low, high: ends of the interval; None where no interval can be drawn, for example for a single problem.
    """

    value: float
    low: float | None
    high: float | None

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of an interval that was drawn."""
        assert self.low is not None and self.high is not None, "no interval was drawn"
        return self.low, self.high

    def times(self, number: float) -> Estimate:
        """The same in another unit, `number` > 0 of which are one of this; for example 100 points of a share of 1."""
        low, high = (None if end is None else number * end for end in (self.low, self.high))
        return Estimate(number * self.value, low, high)


ZERO = Estimate(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Draws:
    """A quantity on the data and on every resample of them.

    Args:
        value: on the data.
        draws_Q: float64, on each resample; NaN where nothing can be drawn, for example from a single problem.
    """

    value: float
    draws_Q: NDArray[np.float64]

    def __add__(self, other: Draws) -> Draws:
        return Draws(self.value + other.value, self.draws_Q + other.draws_Q)

    def __truediv__(self, number: float) -> Draws:
        return Draws(self.value / number, self.draws_Q / number)

    def __sub__(self, other: Draws) -> Draws:
        """The paired change from `other` to this; both must come from the same resamples."""
        return Draws(self.value - other.value, self.draws_Q - other.draws_Q)

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
        """The value with its central percentile interval; without ends where nothing can be drawn."""
        if np.isnan(self.draws_Q).any():
            return Estimate(self.value, None, None)
        return Estimate(self.value, *interval(self.draws_Q, bootstrap.confidence))


def mean_of(parts: Sequence[Draws]) -> Draws:
    """Unweighted mean of quantities, resample by resample.

    Raises:
        ValueError: there are none.
    """
    if not parts:
        raise ValueError("a mean needs at least one quantity")
    return reduce(add, parts) / len(parts)


def one_of(parts: Sequence[Draws], bootstrap: Bootstrap) -> Draws:
    """A single one of several like quantities, for example of random controls.

    The value is the mean over them. Each resample takes one of them at random, so the interval holds the spread over
    controls as well as over text. Equal seeds of `bootstrap` choose the same controls.

    Raises:
        ValueError: there are none.
    """
    if not parts:
        raise ValueError("one of no quantities cannot be drawn")
    resamples = len(parts[0].draws_Q)
    chosen_Q = np.random.default_rng([bootstrap.seed, 1]).integers(len(parts), size=resamples)
    draws_Q = np.empty(resamples)
    for number, part in enumerate(parts):
        taken_Q = chosen_Q == number
        draws_Q[taken_Q] = part.draws_Q[taken_Q]
    return Draws(float(np.mean([part.value for part in parts])), draws_Q)
