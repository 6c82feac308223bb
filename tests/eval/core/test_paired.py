"""Means and changes if some conditions lack some units."""

import numpy as np
import pytest

from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.estimate import Estimate, mean_of, one_of
from monet.eval.core.paired import paired

BOOTSTRAP = Bootstrap(resamples=1000)
NAN = float("nan")


def test_each_mean_is_over_its_units_and_each_change_over_those_of_both():
    values_CU = np.array([[1.0, 2.0, 3.0, NAN], [1.5, NAN, 4.0, 9.0], [NAN, NAN, NAN, NAN], [0.0, 1.0, 2.0, NAN]])
    found = paired(np.stack([values_CU, 2 * values_CU], axis=1), BOOTSTRAP, [0])
    assert [found.own[c][0].value for c in (0, 1, 3)] == pytest.approx([2.0, 14.5 / 3, 1.0])
    assert found.own[1][1].value == pytest.approx(29 / 3)
    assert found.change[1][0].value == pytest.approx(0.75), "on the units 0 and 2"
    assert 2 not in found.own and 2 not in found.change
    change = found.change[3][0].estimate(BOOTSTRAP)
    assert (change.value, change.low, change.high) == pytest.approx((-1.0, -1.0, -1.0)), "the same draws for both"


def test_a_single_unit_has_a_value_and_no_interval():
    found = paired(np.array([[[0.5, NAN]], [[0.2, 0.9]], [[0.1, NAN]]]), BOOTSTRAP, [0])
    assert found.own[0][0].estimate(BOOTSTRAP) == Estimate(0.5, None, None)
    assert found.own[1][0].estimate(BOOTSTRAP).low is not None
    both = [found.change[1][0], found.change[2][0]]
    for part in (both[0], mean_of(both), one_of(both, BOOTSTRAP)):
        assert part.estimate(BOOTSTRAP).low is None
    assert mean_of(both).value == pytest.approx(-0.35)
