"""Accuracies, differences and their intervals from right and wrong answers."""

from __future__ import annotations

import numpy as np
import pytest

from monet.errors import DataError
from monet.eval.choices.scoring import Outcome, count_outcomes, log_probability
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.estimate import mean_of, one_of
from monet.eval.suites.questions.accuracy import Denominator, draws
from monet.eval.suites.questions.scoring import correct
from monet.eval.suites.questions.tasks import Question

BOOTSTRAP = Bootstrap(resamples=4000)
QUESTION = Question("x/0", (("a", " b"), ("a", " ccc")), 1, (1, 3), "a", ("b", "ccc"))


def test_the_likeliest_option_is_taken_and_lengths_count_where_asked():
    outcomes = [Outcome((-2.0, -3.0)), Outcome((-3.0, -2.0)), Outcome(None, reason="longer than the context")]
    questions = [QUESTION] * 3
    assert np.array_equal(correct(questions, outcomes, False), [0.0, 1.0, np.nan], equal_nan=True)
    assert np.array_equal(correct(questions, outcomes, True), [1.0, 1.0, np.nan], equal_nan=True)
    wanted = np.log(np.exp(-3.0) / (np.exp(-2.0) + np.exp(-3.0)))
    assert log_probability(questions, outcomes)[:1] == pytest.approx([wanted])
    assert count_outcomes(outcomes) == ({"longer than the context": 1}, 0)
    assert count_outcomes([Outcome((-1.0, -2.0), cut=4)]) == ({}, 1)


def test_intervals_are_paired_and_as_wide_as_theory_has_it():
    generator = np.random.default_rng(0)
    before_U = (generator.random(400) < 0.5).astype(float)
    after_U = before_U.copy()
    after_U[:40] = 0.0
    correct_CU = np.stack([before_U, after_U])
    correct_CU[:, 7] = np.nan  # no score
    kept_CU = np.delete(correct_CU, 7, axis=1)
    before, after = draws("x", correct_CU, BOOTSTRAP)
    level, change = before.estimate(BOOTSTRAP), (after - before).estimate(BOOTSTRAP)
    assert level.value == kept_CU[0].mean() and change.value == kept_CU[1].mean() - kept_CU[0].mean()
    for interval, values_U in ((level, kept_CU[0]), (change, kept_CU[1] - kept_CU[0])):
        half = 1.96 * values_U.std() / np.sqrt(399)
        assert interval.low == pytest.approx(values_U.mean() - half, abs=0.1 * half)
        assert interval.high == pytest.approx(values_U.mean() + half, abs=0.1 * half)
    assert draws("x", correct_CU, BOOTSTRAP)[0].draws_Q[0] == before.draws_Q[0]
    assert draws("y", correct_CU, BOOTSTRAP)[0].draws_Q[0] != before.draws_Q[0], "benchmarks are drawn apart"


def test_a_single_control_may_be_any_of_them():
    """Two controls have very different effects: the interval holds both, and the value is between them."""
    whole, *controls = draws("x", np.array([[1.0] * 50, [0.0] * 50, [1.0] * 50]), BOOTSTRAP)
    found = one_of([control - whole for control in controls], BOOTSTRAP).estimate(BOOTSTRAP)
    assert (found.value, found.low, found.high) == (-0.5, -1.0, 0.0)


def test_the_mean_of_parts_counts_them_alike():
    (a,), (b,) = (draws(name, np.array([of]), BOOTSTRAP) for name, of in (("a", [1.0, 1.0]), ("b", [0.0, 1.0] * 5)))
    found = mean_of([a, b])
    assert found.value == 0.75 and np.allclose(found.draws_Q, (a.draws_Q + b.draws_Q) / 2)


def test_too_few_scores_have_no_interval():
    with pytest.raises(DataError, match="law: 1 of 3 questions have a score"):
        draws("law", np.array([[1.0, np.nan, np.nan]]), BOOTSTRAP)


def test_counts_in_words():
    one = Denominator(
        "law", 10, {"a missing option": 1}, 9, {"longer than the context": 2}, 3, ["mmlu_x"], "test", "", []
    )
    assert one.scored == 7 and one.partial
    assert one.words == (
        "7 of 9 questions scored; 10 rows, 3 with a cut prompt, "
        "left out: 1 a missing option; 2 longer than the context; no data for mmlu_x"
    )
    assert not Denominator("law", 10, {}, 2, {}, 3, [], "test", "", []).partial
