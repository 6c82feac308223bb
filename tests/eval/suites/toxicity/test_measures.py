"""Numbers with known answers: maxima, shares, paired changes, missing scores."""

import math
from dataclasses import replace

import numpy as np
import pytest

from monet.errors import CheckpointError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import Chance
from monet.eval.core.conditions import Condition
from monet.eval.core.estimate import Estimate
from monet.eval.core.window_losses import WindowLosses
from monet.eval.scorers.scorers import Failure
from monet.eval.suites.toxicity import measures
from monet.eval.suites.toxicity.prompts import Prompt
from monet.eval.suites.toxicity.results import ALL, Cell, Row, ToxicityResult
from monet.eval.suites.toxicity.scoring import Scores
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import config

PROMPTS = [Prompt(f"p{i}", f"text {i}", "even" if i % 2 == 0 else "odd") for i in range(6)]
BOOTSTRAP = Bootstrap(resamples=1000)


def written(values):
    """Continuations whose text is their score, and these scores."""
    texts = {f"p{i}": [f"{i} {j} {value}" for j, value in enumerate(row)] for i, row in enumerate(values)}
    scores = Scores({text: float(text.split()[-1]) for samples in texts.values() for text in samples})
    return texts, scores


def outcomes(values, scores=None, unreadable=None):
    texts, own = written(values)
    for id in unreadable or {}:
        del texts[id]
    return measures.outcomes(PROMPTS, [(texts, scores or own)], unreadable or {}, 0.5)


VALUES = [[0.1, 0.2], [0.9, 0.3], [0.5, 0.5], [0.6, 0.0], [0.0, 0.0], [1.0, 1.0]]
LOWER = [[0.0, 0.1], [0.8, 0.3], [0.4, 0.4], [0.3, 0.0], [0.0, 0.0], [0.9, 1.0]]


def conditions():
    shape = config(moe_experts=8)
    mask = ExpertMask.random(shape, 5, seed=0)
    others = [Condition(f"random {number} like m", mask, "m", number) for number in (0, 1)]
    return [Condition("no mask"), Condition("m", mask, "m"), *others]


def test_known_answers():
    found = outcomes(VALUES)
    assert found.expected_max_U.tolist() == [0.2, 0.9, 0.5, 0.6, 0.0, 1.0]
    assert found.toxic_U.tolist() == [0, 1, 0, 1, 0, 1]  # above a half, not at it
    assert found.mean_U.tolist() == pytest.approx([0.15, 0.6, 0.5, 0.3, 0.0, 1.0])
    rows = measures.rows(
        list(zip(conditions(), map(outcomes, (VALUES, LOWER, VALUES, VALUES)), strict=True)),
        PROMPTS, ["even", "odd"], BOOTSTRAP,
    )  # fmt: skip
    whole, purged, *controls = rows
    cell = whole.cells[ALL]
    assert cell.expected_max.value == pytest.approx(3.2 / 6) and cell.probability.value == 0.5
    assert cell.mean == pytest.approx(2.55 / 6) and cell.prompts == 6 and not cell.missing
    assert cell.expected_max.low < cell.expected_max.value < cell.expected_max.high
    assert cell.expected_max_delta is None and cell.random_expected_max_delta is None
    assert whole.cells["even"].expected_max.value == pytest.approx(0.7 / 3)
    assert whole.cells["odd"].probability.value == 1.0
    change = purged.cells[ALL].expected_max_delta
    assert change.value == pytest.approx(-0.6 / 6) and change.low < change.value < change.high <= 0.0
    assert purged.cells[ALL].probability_delta.value == pytest.approx(-1 / 6)
    assert purged.cells[ALL].random_expected_max_delta == Estimate(0.0, 0.0, 0.0)
    assert controls[0].cells[ALL].expected_max_delta == Estimate(0.0, 0.0, 0.0)
    assert purged.removed == 5 and purged.share == 5 / (2 * 64)
    assert purged.cells[ALL].expected_max_chance == purged.cells[ALL].probability_chance == Chance(2, 1 / 3, 1 / 3)


def test_changes_are_paired():
    noise = np.random.default_rng(0).uniform(size=(6, 2)).round(3)
    rows = measures.rows(
        list(zip(conditions()[:2], (outcomes(noise), outcomes(noise - 0.001)), strict=True)),
        PROMPTS, ["all"], BOOTSTRAP,
    )  # fmt: skip
    change = rows[1].cells[ALL].expected_max_delta
    assert (change.low, change.high) == pytest.approx((-0.001, -0.001))
    assert rows[1].cells[ALL].expected_max.high - rows[1].cells[ALL].expected_max.low > 0.05


def test_random_controls_hold_the_spread_over_controls():
    higher = [[value + 0.1 for value in row] for row in LOWER]
    rows = measures.rows(
        list(zip(conditions(), map(outcomes, (LOWER, LOWER, LOWER, higher)), strict=True)), PROMPTS, ["a"], BOOTSTRAP
    )
    random = rows[1].cells[ALL].random_expected_max_delta
    assert (random.value, random.low, random.high) == pytest.approx((0.05, 0.0, 0.1))
    # Neither the mask nor the equal control changes anything; the other control raises the numbers.
    assert rows[1].cells[ALL].expected_max_chance == Chance(2, 2 / 3, 2 / 3)


def test_what_is_missing_is_named_and_left_out_of_both_sides():
    texts, scores = written(LOWER)
    lost = texts["p1"][1]
    scores.failures[lost] = Failure("rate limited")
    del scores.values[lost]
    partial = measures.outcomes(PROMPTS, [(texts, scores)], {}, 0.5)
    assert partial.reason_U[1] == "scorer: rate limited" and math.isnan(partial.expected_max_U[1])
    short = outcomes(VALUES, unreadable={"p5": "longer than the model reads"})
    rows = measures.rows(
        list(zip(conditions()[:2], (short, partial), strict=True)), PROMPTS, ["even", "odd"], BOOTSTRAP
    )
    whole, purged = (row.cells[ALL] for row in rows)
    assert whole.prompts == 5 and whole.missing == {"longer than the model reads": 1}
    assert purged.prompts == 5 and purged.missing == {"scorer: rate limited": 1}
    assert whole.expected_max.value == pytest.approx(2.2 / 5)
    assert purged.expected_max.value == pytest.approx(1.8 / 5)
    # on the four prompts that both have: 0.2 0.5 0.6 0 and 0.1 0.4 0.3 0
    assert purged.expected_max_delta.value == pytest.approx(-0.5 / 4)
    assert rows[1].cells["odd"].prompts == 2


def test_one_prompt_gives_no_interval_and_none_no_estimate():
    texts, scores = written(VALUES)
    lost = {f"p{i}": "longer than the model reads" for i in range(1, 6)}
    found = measures.outcomes(PROMPTS, [({"p0": texts["p0"]}, scores)], lost, 0.5)
    (row,) = measures.rows([(Condition("no mask"), found)], PROMPTS, ["even", "odd"], BOOTSTRAP)
    assert row.cells[ALL].expected_max == Estimate(0.2, None, None) and row.cells[ALL].mean == pytest.approx(0.15)
    assert row.cells["odd"].expected_max is None
    result = ToxicityResult("toxigen", 6, 1, 0.5, ["even", "odd"], "expert", "routing group", None, [row], {})
    assert "0.200, 0.0% of 1 prompts" in result.sentence and "PARTIAL: 5 of 6" in result.sentence


def test_silence_is_not_toxic_and_is_shown():
    texts = {prompt.id: ["", " \n"] if prompt.id == "p0" else ["x", ""] for prompt in PROMPTS}
    found = measures.outcomes(PROMPTS, [(texts, Scores({"x": 0.8}))], {}, 0.5)
    assert found.expected_max_U.tolist() == [0.0] + [0.8] * 5
    assert found.silent_U.tolist() == [1.0] + [0.5] * 5


def test_losses_beside():
    document_W = np.array([0, 0, 1, 2])
    before = WindowLosses(np.array([2.0, 2.0, 6.0, 1.0]), np.array([2, 2, 4, 2]), np.zeros(4, int), document_W)
    after = WindowLosses(before.loss_sum_W * 1.5, before.tokens_W, before.label_W, document_W)
    rows = [Row("no mask", None, None, 0, 0.0, {}), Row("m", "m", None, 5, 0.1, {})]
    asked = [Condition("no mask"), Condition("m", None, "m"), Condition("random 0 like m", None, "m", 0)]
    rows.append(Row("random 0 like m", "m", 0, 5, 0.1, {}))
    whole, purged, _ = measures.with_losses(rows, asked, [before, after, before], BOOTSTRAP)
    assert purged.random_loss_delta == Estimate(0.0, 0.0, 0.0) and whole.random_loss_delta is None
    assert whole.loss.value == 1.1 and whole.perplexity == pytest.approx(math.exp(1.1)) and whole.loss_delta is None
    assert purged.loss_delta.value == pytest.approx(0.55) and purged.loss_delta.low > 0
    sourced = replace(before, source_W=document_W % 2)
    by_source, _, _ = measures.with_losses(rows, asked, [sourced, after, before], BOOTSTRAP)
    assert by_source.loss.value == whole.loss.value and by_source.loss != whole.loss


def test_json_and_back():
    rows = measures.rows(
        list(zip(conditions(), map(outcomes, (VALUES, LOWER, VALUES, LOWER)), strict=True)), PROMPTS, ["even", "odd"],
        BOOTSTRAP,
    )  # fmt: skip
    result = ToxicityResult(
        "realtoxicityprompts", 6, 2, 0.5, ["even", "odd"], "expert", "routing group", True, rows, {"seed": 0}
    )
    assert ToxicityResult.from_json(result.to_json()) == result and not result.partial
    assert isinstance(result.from_json(result.to_json()).rows[1].cells["even"], Cell)
    assert "m: -0.100 [" in result.sentence and "random -0.050 [" in result.sentence
    assert "p 0.667, q 0.667 (2 random controls)" in result.sentence
    damaged = result.to_json()
    damaged["rows"][1]["cells"]["odd"]["expected_max"]["value"] = "much"
    with pytest.raises(CheckpointError, match=r"rows\[1\].cells.*expected_max.value"):
        ToxicityResult.from_json(damaged)
