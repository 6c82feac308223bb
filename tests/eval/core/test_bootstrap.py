import numpy as np
import pytest

from monet.errors import ConfigError, DataError
from monet.eval.core import bootstrap
from monet.eval.core.bootstrap import Bootstrap, interval, resample_means


def test_means_are_weighted_by_tokens():
    drawn = resample_means(np.array([[2.0, 30.0], [4.0, 60.0]]), np.array([1, 9]), 1000, seed=0)
    np.testing.assert_allclose(drawn.mean_C, [3.2, 6.4])
    # All conditions use one resample. If one condition is twice another, this holds in every draw.
    np.testing.assert_allclose(drawn.draws_QC[:, 1], 2 * drawn.draws_QC[:, 0])
    # the only possible draws: unit 0 twice, unit 1 twice, both
    assert set(np.round(drawn.draws_QC[:, 0], 9)) == {2.0, 3.2, round(30 / 9, 9)}


def test_intervals_cover_a_known_mean_about_as_often_as_they_claim():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        sums = generator.exponential(2.0, size=(1, 60))
        low, high = interval(resample_means(sums, np.ones(60, np.int64), 1000, trial).draws_QC[:, 0], 0.9)
        covered += low <= 2.0 <= high
    assert 0.83 <= covered / 300 <= 0.95


def test_pairing_narrows_the_interval_of_a_difference():
    generator = np.random.default_rng(6)
    before = generator.normal(3.0, 1.0, size=40)
    after = before + generator.normal(0.1, 0.01, size=40)
    drawn = resample_means(np.stack([before, after]), np.ones(40, np.int64), 2000, seed=1)
    low, high = interval(drawn.draws_QC[:, 1] - drawn.draws_QC[:, 0], 0.95)
    assert 0.09 < low < 0.1 < high < 0.11


def test_seeds_and_conditions():
    sums, tokens = np.random.default_rng(7).random((3, 20)), np.full(20, 5)
    first = resample_means(sums, tokens, 1000, seed=3)
    np.testing.assert_array_equal(first.draws_QC, resample_means(sums, tokens, 1000, seed=3).draws_QC)
    np.testing.assert_allclose(first.draws_QC[:, :1], resample_means(sums[:1], tokens, 1000, seed=3).draws_QC)
    assert not np.array_equal(first.draws_QC, resample_means(sums, tokens, 1000, seed=4).draws_QC)


def test_many_units_are_drawn_from_the_same_distribution(monkeypatch):
    """Many units use another way to draw."""
    generator = np.random.default_rng(8)
    sums, tokens = generator.gamma(2.0, 3.0, (2, 50)), generator.integers(1, 9, 50)
    few = resample_means(sums, tokens, 20_000, seed=1)
    monkeypatch.setattr(bootstrap, "MANY_UNITS", 50)
    many = resample_means(sums, tokens, 20_000, seed=2)
    np.testing.assert_array_equal(many.mean_C, few.mean_C)
    assert not np.array_equal(many.draws_QC, few.draws_QC)
    np.testing.assert_allclose(many.draws_QC.mean(axis=0), few.draws_QC.mean(axis=0), rtol=0.01)
    for share in (0.01, 0.2, 0.8, 0.99):
        both = [np.quantile(found.draws_QC, share, axis=0) for found in (few, many)]
        np.testing.assert_allclose(*both, rtol=0.02)
    assert (bootstrap._times_drawn(generator, 50, 7).sum(axis=1) == 50).all()


def test_blocks_do_not_change_the_draws(monkeypatch):
    sums, tokens = np.random.default_rng(8).random((2, 20)), np.full(20, 5)
    whole = resample_means(sums, tokens, 1000, seed=3)
    monkeypatch.setattr("monet.eval.core.bootstrap.BLOCK_CELLS", 20 * 7)
    np.testing.assert_allclose(whole.draws_QC, resample_means(sums, tokens, 1000, seed=3).draws_QC)


def test_one_unit_has_no_spread():
    with pytest.raises(DataError, match="at least two"):
        resample_means(np.ones((1, 1)), np.ones(1, np.int64), 1000, seed=0)


WRONG = [{"resamples": 999}, {"confidence": 1.0}, {"confidence": 0.0}, {"unit": "token"}, {"seed": -1}]


@pytest.mark.parametrize("wrong", WRONG)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Bootstrap(**wrong)
