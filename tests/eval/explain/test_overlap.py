"""Best matches between two models, against a loop over all pairs, and their control."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from monet.eval.explain.overlap import best_overlap, exchanged


def test_the_best_match_is_that_of_a_loop():
    generator = np.random.default_rng(0)
    one, other = (np.stack([generator.permutation(30)[:6] for _ in range(count)]) for count in (300, 17))
    one[3, 4:] = -1
    one[5] = -1

    def similarity(a, b):
        a, b = set(a.tolist()) - {-1}, set(b.tolist()) - {-1}
        return len(a & b) / max(len(a | b), 1)

    expected = [max(similarity(a, b) for b in other) for a in one]
    assert best_overlap(one, other) == pytest.approx(expected)
    assert best_overlap(other, other).tolist() == [1.0] * 17


def test_exchanged_windows_keep_their_label():
    windows = SimpleNamespace(number_W=np.arange(0, 80, 2), label_W=np.arange(40) % 4)
    before = np.array([[0, 2, 78, -1], [4, 6, 8, 10]])
    after = exchanged(before, windows, 0)
    assert (after[before < 0] == -1).all() and (after != before).any()
    filled = before >= 0
    assert (windows.label_W[after[filled] // 2] == windows.label_W[before[filled] // 2]).all()
