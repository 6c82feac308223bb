"""Scores by hand: balanced accuracy, area under the curve, odd ones, precision at a rate."""

from __future__ import annotations

import numpy as np
import pytest

from monet.eval.core.bootstrap import Bootstrap
from monet.eval.explain.excerpts import Excerpt
from monet.eval.explain.material import Material
from monet.eval.explain.scorers import accuracy, area, mixed_sets, precision, sets_of, share_found

BOOTSTRAP = Bootstrap(resamples=1000)


def test_balanced_accuracy_counts_missing_answers_as_wrong():
    found = accuracy([True, True, None, False], [False, None], BOOTSTRAP)
    assert found.value == pytest.approx((0.5 + 0.5) / 2) and found.failed == 2
    assert (found.hits, found.alarms) == (0.5, 0.5)
    low, high = found.ends(BOOTSTRAP)
    assert 0 <= low < 0.5 < high <= 1
    assert accuracy([None] * 3, [None] * 3, BOOTSTRAP).value == 0


def test_the_interval_is_that_of_the_shares():
    draws_Q = accuracy([True] * 30 + [False] * 10, [False] * 20 + [True] * 20, BOOTSTRAP).draws_Q
    assert draws_Q.mean() == pytest.approx((0.75 + 0.5) / 2, abs=0.01)
    assert draws_Q.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 40 + 0.25 / 40) / 2, rel=0.1)


def test_area():
    found = area(np.array([0.9, 0.5]), np.array([0.5, 0.1]), BOOTSTRAP)
    assert found.value == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    missing = area(np.array([0.9, np.nan]), np.array([0.1, np.nan]), BOOTSTRAP)
    assert missing.value == 0.25 and missing.failed == 2


def material(windows) -> Material:
    active = [Excerpt(n, 0, 0, "a", "b", (1,), (str(n),), 1.0, n % 3) for n in windows]
    return Material(active, [Excerpt(100 + n, 0, 0, "a", "b", (1,), ("x",)) for n in windows], 0.1)


def test_sets_hold_one_odd_excerpt_and_the_control_mixes_the_others():
    every = [sets_of(material(range(10 * u, 10 * u + 9)), [0, u]) for u in range(6)]
    for sets, places in every:
        assert len(sets) == 2 and all(len(one) == 5 for one in sets)
        assert all([one.interval < 0 for one in members].index(True) == place
                   for members, place in zip(sets, places, strict=True))  # fmt: skip
        assert len({one.window for members in sets for one in members}) == 10
    mixed = mixed_sets([sets for sets, _ in every], [places for _, places in every])
    for number, (lists, (_, places)) in enumerate(zip(mixed, every, strict=True)):
        for members, place in zip(lists, places, strict=True):
            owners = [one.window // 10 for n, one in enumerate(members) if n != place]
            assert number not in owners and len(set(owners)) == 4 and members[place].interval < 0


def test_every_place_is_equally_likely():
    places = [sets_of(material(range(4)), [0, 0, unit])[1][0] for unit in range(500)]
    assert all(70 < places.count(place) < 130 for place in range(5))


def test_share_of_odd_ones_found():
    found = share_found([1, 2, None, 0], [1, 2, 3, 4], BOOTSTRAP)
    assert found.value == 0.5 and found.failed == 1


def test_precision_at_a_rate():
    assert precision(0.5, 0.1, 0.01) == pytest.approx(0.005 / (0.005 + 0.099))
    assert precision(0.0, 0.0, 0.1) is None
