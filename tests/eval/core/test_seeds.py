"""Spread over seeds: numbers from tables, numbers computed by hand, and refusals."""

import math

import numpy as np
import pytest

from monet.errors import ConfigError, DataError
from monet.eval.core.seeds import SeedSpread, over_seeds, sd_of_interval, t_quantile


def test_quantiles_of_t_are_those_of_printed_tables():
    table = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 30: 2.042}
    for freedom, wanted in table.items():
        assert t_quantile(0.975, freedom) == pytest.approx(wanted, abs=5e-4)
    assert t_quantile(0.95, 2) == pytest.approx(2.920, abs=5e-4)


def test_three_seeds_by_hand():
    found = over_seeds([1.0, 2.0, 6.0], [0.3, 0.4, 0.5])
    sd = math.sqrt((4 + 1 + 9) / 2)
    reach = 4.302653 * sd / math.sqrt(3)
    assert found.mean == 3.0 and found.seeds == 3
    assert found.sd_seeds == pytest.approx(sd)
    assert (found.low, found.high) == pytest.approx((3 - reach, 3 + reach))
    assert found.sd_text == pytest.approx(math.sqrt((0.09 + 0.16 + 0.25) / 3))
    assert found.larger == "seeds" and found.few


def test_the_order_of_seeds_does_not_matter():
    values, sd = [0.31, 0.12, 0.77, 0.4, 0.21], [0.1, 0.2, 0.3, 0.4, 0.5]
    assert over_seeds(values, sd) == over_seeds(values[::-1], sd[::-1])
    assert not over_seeds(values, sd).few


def test_which_spread_is_larger():
    assert over_seeds([1.0, 1.1], [1.0, 1.0]).larger == "text"
    assert over_seeds([1.0, 1.0], None) == SeedSpread(1.0, 1.0, 1.0, 0.0, None, 2)
    assert over_seeds([1.0, 1.0], None).larger is None
    assert over_seeds([1.0, 1.0], [0.0, 0.0]).larger == "equal"


def test_the_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 0.5, (4000, 3))
    held = sum(one.low <= 2.0 <= one.high for one in (over_seeds(row.tolist(), None, 0.8) for row in draws))
    assert held / 4000 == pytest.approx(0.8, abs=0.02)  # the standard error is 0.006


def test_an_interval_gives_back_the_standard_deviation_of_a_normal_quantity():
    assert sd_of_interval(-1.959964, 1.959964, 0.95) == pytest.approx(1.0)
    assert sd_of_interval(3 - 1.644854 * 0.2, 3 + 1.644854 * 0.2, 0.9) == pytest.approx(0.2)


def test_refusals_name_what_is_wrong():
    with pytest.raises(DataError, match="at least two seeds, got 1"):
        over_seeds([1.0], None)
    with pytest.raises(DataError, match="finite"):
        over_seeds([1.0, math.nan], None)
    with pytest.raises(DataError, match="2 values over seeds with 1 standard"):
        over_seeds([1.0, 2.0], [0.1])
    with pytest.raises(DataError, match=r"at least 0, got -0\.1"):
        over_seeds([1.0, 2.0], [0.1, -0.1])
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 1\.0"):
        over_seeds([1.0, 2.0], None, 1.0)
