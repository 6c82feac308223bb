"""Purity, entropy and usage by hand, and controls that keep only frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from monet.eval.explain.purity import most_frequent, purities, scattered, usage
from monet.eval.explain.strongest import ContextTable


def table(token, label, weight=None) -> ContextTable:
    token_UK, label_UK = np.array(token), np.array(label)
    weight_UK = np.ones(token_UK.shape) if weight is None else np.array(weight, float)
    return ContextTable(np.arange(token_UK.size).reshape(token_UK.shape), token_UK, label_UK, weight_UK)


def test_measures():
    found = purities(
        table([[1, 1, 2, 1], [1, 2, 3, 9], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]],
              [[1, 1, 1, 1], [2, 1, 1, 0], [0, 0, 0, 0]]),
        labels=2,
    )  # fmt: skip
    assert found[:, 0].tolist() == [0.75, 1.0, 0.0]
    assert found[0, 1] == 0.5 and found[1, 1] == 0.0
    assert found[2, 1] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert np.isnan(found[:, 2]).all()


def test_the_control_keeps_frequencies_and_loses_purity():
    one = table(np.arange(40)[:, None].repeat(10, 1), (np.arange(40) % 4)[:, None].repeat(10, 1))
    shuffled = one.shuffled(0)
    assert sorted(shuffled.token_UK.ravel()) == sorted(one.token_UK.ravel())
    assert purities(one, 4)[0].mean() == 1 and purities(shuffled, 4)[0].mean() < 0.3
    assert purities(one, 4)[1].mean() == 1 and purities(shuffled, 4)[1].mean() == 0
    assert purities(shuffled, 4)[2].mean() > 1.5


def test_scattered_firings_have_the_commonest_token_of_the_text():
    token, one, entropy = scattered(np.array([100_000, 100_000]), np.array([0, 3, 1]), np.array([500, 1500]), 0)
    assert token == pytest.approx(0.75, abs=0.01) and not one.any() and entropy == pytest.approx(1.0, abs=0.01)


def test_most_frequent():
    assert most_frequent(np.array([[1, 2, 1], [3, 3, 4]]), np.array([[1.0, 5, 1], [1, 1, 1]])).tolist() == [5.0, 2.0]


def test_usage():
    assert usage(np.array([1.0, 1.0, 1.0, 1.0])) == pytest.approx((1.0, 1.0))
    assert usage(np.array([2.0, 0.0, 0.0, 0.0])) == pytest.approx((0.25, 0.25))
    assert usage(np.zeros(3)) == (0.0, 0.0)
