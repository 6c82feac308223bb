"""The computed order: permutations, exact epochs and exact mixtures at any position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monet.data.loading.order import WindowOrder, permuted
from monet.errors import ConfigError

PINNED = [6, 1, 4, 5, 0, 7, 9, 2, 3, 8]
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@given(st.integers(1, 3000), st.text(max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_element_is_hit_once(size, key):
    assert np.array_equal(np.sort(permuted(np.arange(size), size, key)), np.arange(size))


def test_places_are_spread_evenly_over_keys():
    places = [int(permuted(np.array([0]), 10, f"key {number}")[0]) for number in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert counts.min() > 140
    assert counts.max() < 260


def test_the_order_is_the_same_on_every_machine_and_version():
    assert permuted(np.arange(10), 10, "seed 0").tolist() == PINNED


def test_a_large_corpus_needs_no_table():
    size = 10**12
    image = permuted(np.arange(5), size, "large")
    assert len(set(image.tolist())) == 5
    assert image.max() > size // 100


@given(COUNTS, st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_each_epoch_holds_every_window_once(counts, seed, epochs):
    order = WindowOrder(counts, seed)
    windows = order(np.arange(epochs * sum(counts))).reshape(epochs, -1)
    assert (np.sort(windows, axis=1) == np.arange(sum(counts))).all()


@given(COUNTS, st.integers(0, 5), st.lists(st.integers(0, 9000), min_size=1, max_size=30), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_position_does_not_depend_on_what_is_asked_beside_it(counts, seed, positions, weighted):
    order = WindowOrder(counts, seed, {str(d): 1.0 for d in range(len(counts))} if weighted else None)
    alone = [int(order(np.array([position]))[0]) for position in positions]
    assert order(np.array(positions)).tolist() == alone


def test_epochs_and_seeds_differ():
    size = 200
    first = WindowOrder([size], 0)(np.arange(2 * size)).reshape(2, -1)
    other = WindowOrder([size], 1)(np.arange(size))
    assert (first[0] == first[1]).mean() < 0.1
    assert (first[0] == other).mean() < 0.1


def test_a_mixture_keeps_its_shares_and_its_domains_epochs():
    counts, weights = [100, 7, 50], {"a": 1, "b": 2, "c": 1}
    windows = WindowOrder(counts, 0, weights)(np.arange(4 * 4096))
    domains = np.searchsorted(np.cumsum(counts), windows, side="right")
    for block in domains.reshape(4, -1):
        assert np.bincount(block).tolist() == [1024, 2048, 1024]
    # over whole blocks a domain's windows are drawn equally often, up to the current epoch
    drawn = np.bincount(windows, minlength=sum(counts))
    for start, end in ((0, 100), (100, 107), (107, 157)):
        assert drawn[start:end].max() - drawn[start:end].min() <= 1


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]], ids=str)
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="mixture weights"):
        WindowOrder([5, 5], 0, dict(zip("ab", weights, strict=True)))
