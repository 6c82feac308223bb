"""Paired bootstrap intervals of mean token losses: resample sources, documents or windows with replacement.

Dims: C conditions (no mask, each mask), U units drawn together (sources, documents or windows), Q resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError, DataError

Unit = Literal["source", "document", "window"]

FEW = 10  # fewer units get a caution
BLOCK_CELLS = 4_000_000
MANY_UNITS = 100_000


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the bootstrap intervals.

    Args:
        resamples: draws for each interval, at least 1000.
        confidence: share of the draws inside an interval, between 0 and 1.
        unit: what is drawn: `source` (windows that begin in documents of one source stay together), `document`
            (windows that begin in one document stay together) or `window`. None takes `source` if all sources are
            known and every domain has two or more, otherwise `document`. Suites that draw questions, prompts or
            problems ignore it.
        seed: seed for the bootstrap.

    Raises:
        ConfigError: a value is out of range.
    """

    resamples: int = 2000
    confidence: float = 0.95
    unit: Unit | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1000:
            raise ConfigError(f"resamples must be at least 1000 for steady intervals, got {self.resamples}")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigError(f"confidence must be between 0 and 1, got {self.confidence}")
        if self.unit is not None and self.unit not in get_args(Unit):
            raise ConfigError(f"unit must be {', '.join(map(repr, get_args(Unit)))} or None, got {self.unit!r}")
        if self.seed < 0:
            raise ConfigError(f"seed of the bootstrap must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class Resampled:
    """Mean loss a token of every condition, on the data and on every resample of the data.

    Args:
        mean_C: float64, nats per token.
        draws_QC: float64, the same quantity on each resample. A row uses one resample for all conditions, so
            differences along C are paired.
    """

    mean_C: NDArray[np.float64]
    draws_QC: NDArray[np.float64]


def resample_means(
    loss_sum_CU: NDArray[np.float64], tokens_U: NDArray[np.int64], num_resamples: int, seed: int | Sequence[int]
) -> Resampled:
    """Token-weighted mean losses under the bootstrap: sum of losses divided by sum of tokens of the drawn units.

    A resample draws U units out of U with replacement. So long documents keep their weight, and the intervals include
    the correlation between the losses of one document.

    Args:
        loss_sum_CU: summed token losses (nats) of every condition on every unit.
        tokens_U: scored tokens of every unit, all at least 1.
        num_resamples: Q, at least 1.
        seed: seed for numpy's PCG64. Equal seeds give equal draws for any number of conditions.

    Raises:
        DataError: fewer than two units, so the spread cannot be estimated.
    """
    num_conditions, num_units = loss_sum_CU.shape
    if num_units < 2:
        raise DataError(
            f"a bootstrap needs at least two units (sources, documents or windows) per domain, got {num_units}; "
            "add text to the evaluation split, or draw smaller units (--unit document or window)"
        )
    generator = np.random.default_rng(seed)
    columns_UX = np.concatenate([loss_sum_CU, tokens_U[None, :].astype(np.float64)]).T
    draws_QC = np.empty((num_resamples, num_conditions))
    block = max(1, BLOCK_CELLS // num_units)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        counts_QU = _times_drawn(generator, num_units, size).astype(np.float64)
        sums_QX = counts_QU @ columns_UX
        draws_QC[start : start + size] = sums_QX[:, :-1] / sums_QX[:, -1:]
    return Resampled(loss_sum_CU.sum(axis=1) / tokens_U.sum(), draws_QC)


def _times_drawn(generator: np.random.Generator, num_units: int, size: int) -> NDArray[np.int64]:
    """How often each unit is drawn in each of `size` resamples, shape (size, U)."""
    if num_units < MANY_UNITS:
        return generator.multinomial(num_units, np.full(num_units, 1.0 / num_units), size=size)
    # The same distribution in a sixth of the time. Fewer units use the slow way, so that earlier results stay the same.
    drawn = (generator.integers(num_units, size=num_units) for _ in range(size))
    return np.stack([np.bincount(units, minlength=num_units) for units in drawn])


def interval(draws_Q: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Central percentile interval of bootstrap draws, e.g. their 2.5 % and 97.5 % points at confidence 0.95."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws_Q, [tail, 1.0 - tail])
    return float(low), float(high)


def few(counts: Mapping[str, int], unit: str, least: int = FEW) -> str:
    """A caution that names what has few units; empty if everything has enough.

    Args:
        counts: units of each domain, benchmark or category.
        unit: name of the unit, for example "source".
        least: smallest number of units that gets no caution.
    """
    scarce = [f"{name} ({count} {unit}{'' if count == 1 else 's'})" for name, count in counts.items() if count < least]
    if not scarce:
        return ""
    return (
        f"Intervals over fewer than {least} {unit}s are unreliable, and mostly too narrow: a bootstrap sees only the "
        f"variation within the available {unit}s. This concerns {', '.join(scarce)}."
    )
