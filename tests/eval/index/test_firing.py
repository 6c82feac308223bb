"""Firing tokens that are estimated from samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from monet.eval.index.firing import sampled
from monet.eval.index.text import FlatIds


@pytest.mark.parametrize("ids", [[7, 7, 9, 9], [7, 9, 9, 9, 7, 7]])
def test_the_error_is_that_of_two_samples_without_replacement(ids):
    text = FlatIds(np.array([0]), np.array([0]), np.array(ids, np.int32))
    shares, errors = [], set()
    for pair in combinations(range(len(ids)), 2):
        window = np.full((1, 8, 2), 2**32 - 1, np.uint32)
        window[0, 5] = 0
        position = np.zeros((1, 8, 2), np.uint16)
        position[0, 5] = pair
        histogram = np.zeros((1, 16), np.uint32)
        histogram[0, 10] = len(ids)
        found = sampled({"window_UAZ": window, "position_UAZ": position}, histogram, text)
        firings = dict(zip(found["token_UF"][0].tolist(), found["firings_UF"][0].tolist(), strict=True))
        shares.append(firings.get(7, 0.0) / len(ids))
        errors.add(float(found["error_U"][0]))
    (error,) = errors  # half of the firings are at token 7, which is the largest spread
    assert np.mean(shares) == pytest.approx(0.5) and error == pytest.approx(np.std(shares))
