"""The spread of a quantity over training seeds, next to its spread over text.

Several models that differ only in their training seed give one value each, all measured on the same text. This gives
two kinds of spread, and neither includes the other:

- over seeds: how the values differ between models on this text. The t interval of the mean holds only this spread.
- over text: how the value of one model would differ on other text of the same kind. A bootstrap over text gives it.

Source of the interval: Student 1908, "The probable error of a mean": mean ± t · sd / √n, with n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev
from typing import Literal

from monet.errors import ConfigError, DataError

# With fewer seeds the t interval is wide, and the standard deviation over seeds is itself uncertain.
FEW_SEEDS = 5


@dataclass(frozen=True)
class SeedSpread:
    """A quantity over training seeds. All numbers except the count are in the unit of the quantity.

    Args:
        mean: unweighted mean over the seeds.
        low, high: ends of the t interval of the mean over seeds. It says nothing about other text.
        sd_seeds: standard deviation over the seeds, with n - 1 in the denominator.
        sd_text: standard deviation over text of one seed's value: root mean square over the seeds. None if unknown.
        seeds: number of seeds.
    """

    mean: float
    low: float
    high: float
    sd_seeds: float
    sd_text: float | None
    seeds: int

    @property
    def larger(self) -> Literal["seeds", "text", "equal"] | None:
        """Where the quantity spreads more; None if the spread over text is unknown."""
        if self.sd_text is None:
            return None
        if self.sd_seeds == self.sd_text:
            return "equal"
        return "seeds" if self.sd_seeds > self.sd_text else "text"

    @property
    def few(self) -> bool:
        """There are fewer than `FEW_SEEDS` seeds."""
        return self.seeds < FEW_SEEDS


def over_seeds(values: Sequence[float], sd_text: Sequence[float] | None, confidence: float = 0.95) -> SeedSpread:
    """Mean, interval and standard deviations of a quantity over training seeds.

    Args:
        values: one value for each seed, measured on the same text; at least two.
        sd_text: standard deviation over text of each value, in the same order; None if unknown. See `sd_of_interval`.
        confidence: confidence level of the t interval of the mean, between 0 and 1.

    Raises:
        DataError: fewer than two values, a number that is not finite, or a wrong number of standard deviations.
        ConfigError: `confidence` is out of range.
    """
    if len(values) < 2:
        raise DataError(f"the spread over seeds needs values of at least two seeds, got {len(values)}; add a result")
    if not all(math.isfinite(value) for value in (*values, *(sd_text or ()))):
        raise DataError(f"values over seeds must be finite, got {list(values)} with {sd_text} over text")
    if sd_text is not None and len(sd_text) != len(values):
        raise DataError(
            f"{len(values)} values over seeds with {len(sd_text)} standard deviations over text; give one for each"
        )
    if sd_text is not None and min(sd_text) < 0:
        raise DataError(f"a standard deviation over text must be at least 0, got {min(sd_text)}")
    center, spread, seeds = mean(values), stdev(values), len(values)
    reach = t_quantile((1 + _checked(confidence)) / 2, seeds - 1) * spread / math.sqrt(seeds)
    text = None if sd_text is None else math.sqrt(mean(sd * sd for sd in sd_text))
    return SeedSpread(center, center - reach, center + reach, spread, text, seeds)


def sd_of_interval(low: float, high: float, confidence: float) -> float:
    """Standard deviation of a normal quantity with this central interval.

    It is the width of the interval divided by the width of the standard normal interval.

    Args:
        low, high: ends of the interval, for example from a bootstrap over text.
        confidence: confidence level of the interval, between 0 and 1.

    Raises:
        ConfigError: `confidence` is out of range.
    """
    return (high - low) / (2 * NormalDist().inv_cdf((1 + _checked(confidence)) / 2))


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # here: the import takes longer than most commands that do not need it

    return float(stdtrit(freedom, probability))


def _checked(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence must be between 0 and 1, got {confidence}")
    return confidence
