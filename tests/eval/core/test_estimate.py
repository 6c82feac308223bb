"""Quantities with their resamples: differences are paired, and a random one of several holds their spread."""

import numpy as np
import pytest

from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.estimate import Draws, Estimate, mean_of, one_of

BOOTSTRAP = Bootstrap(1000)
NOISE_Q = np.random.default_rng(0).normal(size=1000)


def test_a_change_is_paired():
    change = Draws(3.0, 3.0 + NOISE_Q) - Draws(1.0, 1.0 + NOISE_Q)
    assert change.estimate(BOOTSTRAP) == Estimate(2.0, pytest.approx(2.0), pytest.approx(2.0))


def test_an_interval_holds_the_middle_of_the_draws():
    found = Draws(0.0, np.arange(1001.0)).estimate(BOOTSTRAP)
    assert found == Estimate(0.0, pytest.approx(25.0), pytest.approx(975.0))
    assert found.ends == (found.low, found.high)


def test_a_mean_is_taken_on_every_resample():
    found = mean_of([Draws(1.0, NOISE_Q), Draws(3.0, -NOISE_Q)])
    assert found.value == 2.0 and np.abs(found.draws_Q).max() < 1e-12
    with pytest.raises(ValueError, match="at least one"):
        mean_of([])


def test_one_of_several_holds_their_spread():
    parts = [Draws(float(value), np.full(1000, float(value))) for value in range(5)]
    found = one_of(parts, BOOTSTRAP)
    assert found.value == 2.0 and set(found.draws_Q) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert found.estimate(BOOTSTRAP).ends == (0.0, 4.0)
    assert np.array_equal(found.draws_Q, one_of(parts, BOOTSTRAP).draws_Q)
    with pytest.raises(ValueError, match="needs at least one quantity"):
        one_of([], BOOTSTRAP)


def test_no_interval_has_no_ends():
    with pytest.raises(AssertionError, match="no interval"):
        _ = Estimate(1.0, None, None).ends
