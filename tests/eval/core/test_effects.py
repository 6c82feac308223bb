"""Rows for the comparison of each suite's results over seeds: names, units, signs, and missing values."""

import dataclasses
from typing import Any

import pytest

from monet.errors import ConfigError
from monet.eval.core.chance import Chance
from monet.eval.core.estimate import Estimate
from monet.eval.reporting import command as report
from monet.eval.reporting.seeds import compare
from monet.eval.suites.code.results import CodeResult, LanguageVerdict
from monet.eval.suites.questions.accuracy import Denominator
from monet.eval.suites.questions.domains_result import Category, DomainsResult, Removal
from monet.eval.suites.questions.general_result import GeneralResult, Row
from monet.eval.suites.toxicity import results as toxicity

LOST, LITTLE = Estimate(-0.25, -0.5, -0.125), Estimate(-0.03125, -0.0625, 0.0)


def provenance(seed: int, **more: Any) -> dict[str, Any]:
    training = {"seed": seed, "data_seed": 0, "step": 1, "data_fingerprint": None}
    origin = {"architecture": "Monet", "config_digest": "0" * 16, "training": training}
    return {
        "model_fingerprint": f"model {seed}", "model_origin": origin, "held_out": True,
        "controls": {"count": 19, "kind": "number"}, "bootstrap": {"confidence": 0.95, "unit": "question"}, **more,
    }  # fmt: skip


def code(seed: int) -> CodeResult:
    verdict = LanguageVerdict(
        "php", "php", LOST, -0.125, "lua", LITTLE, LITTLE, [-0.03125] * 19, 19, 0.05, 0.05, True, ""
    )
    told = provenance(seed, problems={"languages": {"php": {"sha256": "ab"}}}, sampling={"temperature": 0.2})
    return CodeResult(
        True, [1], 1, {"php": "8"}, {}, "expert", "routing group", True, [], [], [verdict], None, [], told
    )  # fmt: skip


def general(seed: int) -> GeneralResult:
    def row(label: str | None, shots: int, change: Estimate, p: float | None = None) -> Row:
        return Row(label or "no mask", label, None, 3, shots, {}, Estimate(0.5, 0.4, 0.6), change, 19, p, p)

    rows = [row(None, 0, LITTLE), row("php", 0, LOST, 0.05), row(None, 5, LITTLE), row("php", 5, LITTLE, 0.5)]
    told = provenance(seed, data={"0-shot mmlu": "ab"}, style="cloze")
    return GeneralResult("expert", rows, [row("php", 0, LITTLE)], {}, "acc", told)


def domains(seed: int) -> DomainsResult:
    counted = Denominator("law", 4, {}, 4, {}, 0, [], "test", "dev", [])

    def removal(name: str, target: Estimate | None) -> Removal:
        return Removal(
            name, 3, [3], 0.1, [LOST, LITTLE], [LOST, LITTLE], [LITTLE, None], target, LITTLE,
            LITTLE if target else None, [-0.03125] * 19, 19, 0.05, 0.05, True, "", True,
        )  # fmt: skip

    categories = [Category(name, Estimate(0.5, 0.4, 0.6), counted) for name in ("law", "biology")]
    told = provenance(seed, data={"mmlu law": "ab"}, shots=0, style="cloze", metric="acc")
    removals = [removal("law", LOST), removal("physics", None)]
    return DomainsResult("expert", "routing group", categories, ["physics"], [], removals, "acc", told)


def toxic(seed: int) -> toxicity.ToxicityResult:
    chance = Chance(19, 0.05, 0.05)
    without_interval = Estimate(-0.25, None, None)
    cell = toxicity.Cell(
        4, {}, LOST, LOST, 0.5, 0.0, LOST, without_interval, LITTLE, LITTLE, chance, None
    )  # fmt: skip
    rows = [
        toxicity.Row("no mask", None, None, 0, 0.0, {toxicity.ALL: cell}),
        toxicity.Row("purge", "rude", None, 3, 0.1, {toxicity.ALL: cell}),
        toxicity.Row("purge, control 0", "rude", 0, 3, 0.1, {toxicity.ALL: cell}),
    ]
    told = provenance(seed, prompts={"files": [{"sha256": "ab"}]}, decoding={"samples": 25}, scorer={"kind": "words"})
    return toxicity.ToxicityResult(
        "realtoxicityprompts", 4, 25, 0.5, [], "expert", "routing group", True, rows, told
    )  # fmt: skip


def test_code_in_points_of_pass_at_k():
    found = code(0).effects()
    (row,) = found.rows
    assert (found.quantity, found.unit) == ("Change of pass@1", "points")
    assert row.target == Estimate(-25.0, -50.0, -12.5) and row.random == Estimate(-3.125, -6.25, 0.0)
    assert (row.others_max, row.others_max_name, row.passes, row.q) == (-12.5, "lua", True, 0.05)


def test_general_ability_by_number_of_shots_without_a_verdict():
    rows = general(0).effects().rows
    assert [row.name for row in rows] == ["php, 0-shot", "php, 5-shot"]
    assert rows[0].target.value == -25.0 and rows[0].random.value == -3.125 and rows[1].random is None
    assert all(row.passes is None and row.others_mean is None for row in rows)
    assert (rows[0].p, rows[1].p) == (0.05, 0.5)


def test_categories_that_were_asked():
    (row,) = domains(0).effects().rows
    assert row.name == "law" and row.target.value == -25.0 and row.others_mean.value == -3.125
    assert (row.others_max, row.others_max_name) == (-3.125, "biology")


def test_toxicity_by_measure():
    rows = toxic(0).effects().rows
    assert [row.name for row in rows] == ["rude, expected maximum", "rude, probability"]
    assert rows[0].target == LOST and (rows[0].controls, rows[0].p) == (19, 0.05)
    assert rows[1].target.low is None and (rows[1].controls, rows[1].p) == (0, 1.0)


@pytest.mark.parametrize("make", [code, general, domains, toxic])
def test_seeds_of_every_kind_are_compared(make):
    found = compare({f"seed{seed}": make(seed) for seed in range(2)})
    (group,) = found.groups
    first = group.masks[0]
    assert first.target.seeds == 2 and first.target.sd_seeds == 0.0 and first.target.sd_text > 0
    blocks = report.report_of(found).blocks
    assert any(getattr(block, "title", "").startswith("Every result") for block in blocks)
    assert report._class(found.FORMAT).from_json(found.to_json()) == found


def test_without_intervals_the_spread_over_text_is_unknown():
    probability = compare({f"seed{seed}": toxic(seed) for seed in range(2)}).groups[0].masks[1]
    assert probability.target.sd_text is None and probability.target.larger is None and probability.passed is None


def test_a_result_without_masks_has_nothing_to_compare():
    for found in (
        dataclasses.replace(code(0), verdicts=[]),
        dataclasses.replace(general(0), rows=general(0).rows[:1]),
        dataclasses.replace(toxic(0), rows=toxic(0).rows[:1]),
        dataclasses.replace(domains(0), removals=domains(0).removals[1:]),
    ):
        with pytest.raises(ConfigError, match="has nothing to compare over seeds"):
            found.effects()
