"""Compares the estimator with the binomial formula and with random draws; also large and wrong numbers."""

import math
import random
from fractions import Fraction

import pytest

from monet.errors import DataError
from monet.eval.suites.code.pass_at_k import pass_at_k


def exact(n: int, c: int, k: int) -> float:
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def test_equals_the_formula_with_binomials():
    for n in range(1, 13):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert pass_at_k(n, c, k) == pytest.approx(exact(n, c, k), abs=1e-14)


@pytest.mark.parametrize("c", [0, 1, 7, 100, 101, 199, 200])
def test_the_paper_s_numbers_of_samples(c):
    for k in (1, 10, 100):
        assert pass_at_k(200, c, k) == pytest.approx(exact(200, c, k), abs=1e-13)
    assert pass_at_k(200, c, 1) == pytest.approx(c / 200)


def test_many_samples_do_not_overflow():
    assert pass_at_k(100_000, 3, 1000) == pytest.approx(exact(100_000, 3, 1000), rel=1e-9)


def test_is_the_chance_of_a_draw():
    generator = random.Random(0)
    samples = [True] * 3 + [False] * 9
    share = sum(any(generator.sample(samples, 4)) for _ in range(20_000)) / 20_000
    assert pass_at_k(12, 3, 4) == pytest.approx(share, abs=0.015)


def test_the_biased_estimate_differs():
    assert abs(pass_at_k(10, 2, 5) - (1 - (1 - 2 / 10) ** 5)) > 0.05


@pytest.mark.parametrize(("n", "c", "k"), [(10, 11, 1), (10, -1, 1), (10, 5, 11), (10, 5, 0), (0, 0, 1)])
def test_what_cannot_be_estimated_is_refused(n, c, k):
    with pytest.raises(DataError, match=f"pass@{k} from {c} passes in {n} samples"):
        pass_at_k(n, c, k)
