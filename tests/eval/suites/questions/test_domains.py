"""`monet eval domains` from MMLU's files to the matrix, with experts from held-out or asked questions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monet import ExpertMask
from monet.cli import main
from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import load_masks
from monet.eval.choices.scoring import Outcome, tokenizer_of
from monet.eval.choices.texts import digest_of
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import p_value, q_values
from monet.eval.core.conditions import Condition, conditions
from monet.eval.core.controls import Controls
from monet.eval.core.document import Heatmap, Table, Text
from monet.eval.core.estimate import one_of
from monet.eval.suites.questions import identify
from monet.eval.suites.questions.accuracy import draws
from monet.eval.suites.questions.asked import Asked
from monet.eval.suites.questions.catalog import benchmarks
from monet.eval.suites.questions.categories import CATEGORIES, CATEGORY_OF, SUBJECTS
from monet.eval.suites.questions.domains import evaluate_domains
from monet.eval.suites.questions.domains_result import DomainsResult
from monet.eval.suites.questions.domains_verdicts import summarise
from monet.eval.suites.questions.model import MonetLM
from monet.eval.suites.questions.scoring import Scorer, correct
from monet.eval.suites.questions.tasks import LoadedTask, Question, load_tasks
from monet.parts import Part
from tests.eval.suites.questions.samples import mmlu_rows, write_jsonl, write_mmlu

# A random model routes all text similarly, so a low ratio gives every category some experts.
QUICK = {
    "progress": False, "batch_size": 8, "bootstrap": Bootstrap(resamples=1000), "ratio": 1.02, "controls": Controls(1)
}  # fmt: skip


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Three categories, of two subjects and more questions each."""
    subjects = ["anatomy", "virology", "econometrics", "high_school_microeconomics", "prehistory"]
    return write_mmlu(tmp_path_factory.mktemp("small"), subjects=subjects, questions=8)


def numbers(result: DomainsResult) -> dict:
    content = result.to_json()
    del content["provenance"]
    return content


def test_folder_to_report(model_folder, mmlu, tmp_path, capsys):
    words = ["--model", str(model_folder), "--local_data", str(mmlu), "--out", str(tmp_path), "--ratio", "1.02"]
    words += ["--controls.count", "1", "--resamples", "1000", "--progress", "false", "--batch_size", "16"]
    assert main(["eval", "domains", *words]) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    result = DomainsResult.load(tmp_path)
    assert result.sentence in shown and "engineering: 4 of 4 questions scored; 4 rows" in shown
    assert [category.name for category in result.categories] == list(CATEGORIES) and not result.partial
    masks = load_masks(tmp_path / "masks")
    assert [one.name for one in result.removals] == list(masks) == list(CATEGORIES)
    for one in result.removals:
        assert one.removed == masks[one.name].num_removed == sum(one.removed_per_group)
        assert one.controls == len(one.random_per_control) == (1 if one.removed else 0)
        assert one.passes == (not one.reason)
        assert len(one.delta) == len(one.random) == 14
        assert [cell is not None for cell in one.random] == [not one.removed or n == one.name for n in CATEGORIES]
        others = [cell.value for cell, name in zip(one.delta, CATEGORIES, strict=True) if name != one.name]
        assert one.others_mean.value == pytest.approx(np.mean(others))
        assert one.target == one.delta[CATEGORIES.index(one.name)]
    assert sum(one.removed > 0 for one in result.removals) > 7
    report = result.report()
    origin, few, heat, verdicts, eleven, nine, surer, questions = report.blocks[:8]
    assert isinstance(few, Text) and few.caution and "fewer than 30 questions are unreliable" in few.text
    assert f"{CATEGORIES[0]} ({result.categories[0].denominator.scored} questions)" in few.text
    assert isinstance(origin, Text) and not origin.caution and result.provenance["held_out"] is True
    assert isinstance(surer, Heatmap) and np.shape(surer.values) == (14, 14)
    assert isinstance(heat, Heatmap) and np.shape(heat.values) == (14, 14)
    assert isinstance(verdicts, Table) and len(verdicts.rows) == 14
    assert verdicts.header[5:] == ["controls", "p", "q", "above mean of others", "passes"]
    assert isinstance(eleven, Table) and np.shape(eleven.rows) == (16, 16)
    base, after = float(eleven.rows[0][1]), float(eleven.rows[0][2])
    assert after - base == pytest.approx(heat.values[0][0], abs=0.011)
    assert isinstance(nine, Table) and [row[0] for row in nine.rows] == ["group 1", "group 2", "total", "share"]
    assert all(int(nine.rows[0][k]) + int(nine.rows[1][k]) == int(nine.rows[2][k]) for k in range(1, 15))
    assert sum(int(row[3]) for row in questions.rows) == 57 * 4
    assert DomainsResult.from_json(report.numbers) == result
    found = result.provenance["identification"]
    assert found["identify_on"] == "held_out" and found["texts"] == 57 * 7 and found["splits"] == ["validation", "dev"]


def test_changes_are_counted_from_the_outcomes(model, small, tmp_path):
    """Each cell follows from single questions; controls are asked all categories; intervals use the same draws."""
    controls = Controls(2, seed=4)
    result = evaluate_domains(
        model, out=tmp_path, data=small, control_on="all", metric="acc", **{**QUICK, "controls": controls}
    )
    masks = load_masks(tmp_path / "masks")
    scorer = Scorer(model, tokenizer_of(model, None), tmp_path / "other", batch_size=8)
    tasks, _ = load_tasks(benchmarks("cloze", ["MMLU"])[0].tasks, 0, data=small)
    names = ["economics", "health", "history"]
    assert [one.name for one in result.removals] == [category.name for category in result.categories] == names
    text = digest_of(question.content for task in tasks for question in task.questions)
    questions = {n: [q for t in tasks if CATEGORY_OF[t.spec.subject] == n for q in t.questions] for n in names}

    def right(mask, name):
        asked = questions[name]
        return correct(asked, scorer.outcomes(asked, Condition("x", mask)), normalised=False)

    def surest(mask, name):
        found = []
        for question, outcome in zip(
            questions[name], scorer.outcomes(questions[name], Condition("x", mask)), strict=True
        ):
            weights = np.exp(np.array(outcome.log_likelihoods))
            found.append(np.log(weights[question.answer] / weights.sum()))
        return np.array(found)

    for one in result.removals:
        for name, cell, random, surer in zip(names, one.delta, one.random, one.log_probability, strict=True):
            rows = [right(None, name), right(masks[one.name], name)]
            rows += [right(controls.draw(masks[one.name], number, one.name, text), name) for number in (0, 1)]
            means = [row.mean() for row in rows]
            assert cell.value == pytest.approx(means[1] - means[0])
            assert random.value == pytest.approx((means[2] + means[3]) / 2 - means[0])
            whole, own, *others = draws(name, np.stack(rows), QUICK["bootstrap"])
            wanted_random = one_of([other - whole for other in others], QUICK["bootstrap"])
            assert random == wanted_random.estimate(QUICK["bootstrap"])
            wanted = [surest(mask, name).mean() for mask in (None, masks[one.name])]
            assert surer.value == pytest.approx(wanted[1] - wanted[0])
            low, high = np.quantile(own.draws_Q - whole.draws_Q, [0.025, 0.975])
            assert (cell.low, cell.high) == pytest.approx((low, high))
    assert any(cell.value for one in result.removals for cell in one.delta)
    p = [p_value(-one.target.value, [-change for change in one.random_per_control]) for one in result.removals]
    assert [one.p for one in result.removals] == p and [one.q for one in result.removals] == q_values(p)


@pytest.mark.parametrize("identify_on", ["held_out", "same"])
def test_experts_are_found_on_the_questions_that_are_told(identify_on, model, small, tmp_path, monkeypatch):
    seen = []
    collect = identify.collect
    monkeypatch.setattr(
        identify, "collect", lambda model, data, **keys: seen.append(data) or collect(model, data, **keys)
    )
    result = evaluate_domains(model, out=tmp_path, data=small, identify_on=identify_on, **QUICK)
    (data,) = seen
    tokenizer = tokenizer_of(model, None)
    texts = {
        label: {
            str(tokenizer.decode(s))
            for s, k in zip(data.sequences, data.label_of, strict=True)
            if data.labels[k] == label
        }
        for label in data.labels
    }
    wanted = {"health": ["anatomy", "virology"], "economics": ["econometrics", "high_school_microeconomics"],
              "history": ["prehistory"]}  # fmt: skip
    splits = {"held_out": [("validation", 2), ("dev", 5)], "same": [("test", 8)]}[identify_on]
    for category, subjects in wanted.items():
        rows = [row for subject in subjects for split, count in splits for row in mmlu_rows(subject, split, count)]
        assert texts[category] == {"\n".join([str(row["question"]), *row["choices"]]) for row in rows}
    assert texts.keys() == wanted.keys()
    told = result.report().blocks[-1].text
    assert ("held-out questions, not those that are asked" in told) == (identify_on == "held_out")
    assert result.provenance["held_out"] == (identify_on == "held_out")
    again = evaluate_domains(model, load_masks(tmp_path / "masks"), out=tmp_path, data=small, **QUICK)
    assert again.removals == result.removals and again.provenance["held_out"] == (identify_on == "held_out")


def test_a_stop_in_mid_pass_changes_nothing(model, small, tmp_path, monkeypatch):
    def run(folder):
        return evaluate_domains(model, out=tmp_path / folder, data=small, **QUICK)

    whole = run("whole")
    original, calls = Scorer.score, []

    def stops(self, questions):
        calls.append(len(questions))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, questions)

    monkeypatch.setattr(Scorer, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    (statistics,) = (tmp_path / "stopped").glob("statistics-*")
    stamp = statistics.stat().st_mtime_ns
    assert numbers(run("stopped")) == numbers(whole)
    total = len(calls)
    assert numbers(run("stopped")) == numbers(whole) and len(calls) == total, "all outcomes were kept"
    assert list((tmp_path / "stopped").glob("statistics-*")) == [statistics]
    assert statistics.stat().st_mtime_ns == stamp, "statistics are taken once"


def test_statistics_are_not_those_of_the_model_without_its_stored_mask(model, small, tmp_path):
    def run():
        evaluate_domains(model, out=tmp_path, data=small, **QUICK)
        return len(list(tmp_path.glob("statistics-*")))

    assert (run(), run()) == (1, 1)
    model.set_expert_mask(ExpertMask.random(model.config, 40, seed=3))
    try:
        assert run() == 2
    finally:
        model.set_expert_mask(None)


def test_categories_without_questions_are_told(model, small, tmp_path):
    result = evaluate_domains(model, out=tmp_path, data=small, **QUICK)
    assert result.partial and "(partial" in result.sentence
    assert (
        result.without_questions
        == result.without_masks
        == [name for name in CATEGORIES if name not in ("economics", "health", "history")]
    )
    assert "law: no questions" in result.counts
    health = next(category for category in result.categories if category.name == "health")
    assert len(health.denominator.missing) == 6 and health.denominator.scored == 16
    assert "no data for mmlu_nutrition" in result.counts
    assert "Left out because they have no questions: biology" in result.report().blocks[-2].text
    with pytest.raises(DataError, match="no data for mmlu_abstract_algebra"):
        evaluate_domains(model, out=tmp_path, data=small, faults="refuse", **QUICK)


def test_a_broken_row_is_left_out_on_both_sides(model, tmp_path):
    write_mmlu(tmp_path / "data", subjects=["anatomy", "prehistory"], questions=6)
    for split in ("test", "validation"):
        path = tmp_path / "data" / "mmlu" / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1]["choices"][2] = ""
        write_jsonl(path, rows)
    result = evaluate_domains(model, out=tmp_path, data=tmp_path / "data", **QUICK)
    health = result.categories[0].denominator
    assert (health.rows, health.asked, health.unaskable) == (6, 5, {"a missing option": 1})
    assert result.provenance["identification"]["left_out"] == {"a missing option": 1}
    assert result.provenance["identification"]["texts"] == 2 * 7 - 1


def test_experts_are_not_found_on_a_question_that_is_asked(model, tmp_path):
    """One held-out question is also asked in another spelling: it is left out and counted."""
    write_mmlu(tmp_path / "data", subjects=["anatomy", "prehistory"], questions=6)
    asked = mmlu_rows("anatomy", "test", 6)[2]
    path = tmp_path / "data" / "mmlu" / "validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"question": str(asked["question"]).upper(), "choices": asked["choices"][::-1]}
    write_jsonl(path, rows)
    result = evaluate_domains(model, out=tmp_path, data=tmp_path / "data", **QUICK)
    found = result.provenance["identification"]
    assert found["left_out"] == {"a question that is asked, too": 1} and found["texts"] == 2 * 7 - 1
    assert result.provenance["held_out"] is True and result.categories[0].denominator.asked == 6
    assert "left out: 1 a question that is asked, too" in result.report().blocks[-1].text


def test_verdicts_have_one_meaning_and_the_mean_of_the_others_another():
    """Answers are planted: a category may lose more than the others on average, and still less than one of them."""
    names = ["health", "history", "law", "physics"]
    questions = [Question(f"x/{k}", (("a", " b"), ("a", " c")), 0, (1, 1), f"{k}", ("b", "c")) for k in range(40)]

    def outcomes(wrong):
        return [Outcome((-2.0, -1.0) if k < wrong else (-1.0, -2.0)) for k in range(40)]

    def task(name):
        spec = next(spec for spec in benchmarks()[0].tasks if CATEGORY_OF[str(spec.subject)] == name)
        return LoadedTask(spec, questions, False, "test", None, "", 40, {})

    masks = {name: ExpertMask(torch.arange(25).view(1, 5, 5) != number) for number, name in enumerate(names)}
    masks["biology"] = ExpertMask(torch.ones(1, 5, 5, dtype=torch.bool))
    controls = Controls(39)
    run_under = conditions(masks, controls, "")
    # Wrong answers by removed and asked category. "law" lowers "physics" as much; "physics" lowers no more than chance.
    wrong = {"health": [20, 1, 1, 1], "history": [1, 20, 1, 1], "law": [0, 0, 20, 20], "physics": [0, 0, 0, 1]}
    found = {name: {0: outcomes(0)} for name in names}
    for number, condition in enumerate(run_under[1:], start=1):
        for place, name in enumerate(names):
            if condition.control is None:
                found[name][number] = outcomes(wrong[str(condition.label)][place])
            elif condition.label == name:
                found[name][number] = outcomes(condition.control % 3)
    asked = [Asked(name, [task(name)], []) for name in names]
    notes = {"identification": {}, "controls": controls.settings(), "held_out": True}
    result = summarise(masks, ("expert", "routing group"), run_under, asked, found, "acc", Bootstrap(1000), notes)
    by_name = {one.name: one for one in result.removals}
    assert {name: one.passes for name, one in by_name.items()} == {
        "health": True, "history": True, "law": False, "physics": False, "biology": False
    }  # fmt: skip
    assert {name: one.above_mean_of_others for name, one in by_name.items()} == {
        "health": True, "history": True, "law": True, "physics": False, "biology": False
    }  # fmt: skip
    assert by_name["law"].reason == "physics lost as much or more" and by_name["law"].q == 1 / 30
    assert by_name["physics"].reason.startswith("within the interval of random masks: p 0.675")
    assert by_name["biology"].reason == "no expert belongs to it"
    assert result.sentence.startswith("2 of 5 masks reduce accuracy in their own category more than in every other")
    assert "; 3 reduce it more than in the others on average, and more than chance explains" in result.sentence
    assert not result.passes and DomainsResult.from_json(result.to_json()) == result
    table = next(block for block in result.report().blocks if isinstance(block, Table))
    assert table.rows[2][-2:] == ["yes", "no: physics lost as much or more"]


def test_controls_of_equal_mass(model, model_folder, small, tmp_path):
    """The statistics that find experts also give controls of equal routing weight, here and for lm-eval."""
    evaluate_domains(model, out=tmp_path, data=small, **QUICK)
    (path,) = tmp_path.glob("statistics-*.safetensors")
    masks = load_masks(tmp_path / "masks")
    controls = ControlOptions(1, "mass", path).open(model)
    result = evaluate_domains(model, masks, out=tmp_path, data=small, **{**QUICK, "controls": controls})
    drawn = result.provenance["controls"]
    assert (drawn["count"], drawn["kind"], drawn["seed"], drawn["on"]) == (1, "mass", 0, "target")
    assert [one["mask"] for one in drawn["achieved"]] == ["economics", "health", "history"]
    assert all(one["mean"] == pytest.approx(1.0, rel=1e-4) for one in drawn["achieved"])
    assert [one.controls for one in result.removals] == [1, 1, 1]
    assert "Random experts of equal mass are removed as controls" in result.report().blocks[3].note
    given = {"mask": masks["health"], "control": 1, "control_kind": "mass", "statistics": str(path)}
    notes = MonetLM(pretrained=str(model_folder), device="cpu", **given).model.expert_mask.provenance
    assert notes["made_by"] == "control" and notes["mass_of_mask"] > 0
    assert notes["mass"] == pytest.approx(notes["mass_of_mask"], rel=1e-5)


def test_masks_may_be_given(model, mask, small, tmp_path):
    options = {"out": tmp_path, "data": small, **QUICK}
    result = evaluate_domains(model, {"history": mask}, **options)
    assert [one.name for one in result.removals] == ["history"] and result.removals[0].removed == 24
    assert not (tmp_path / "masks").exists() and "The masks were given." in result.report().blocks[-1].text
    law = evaluate_domains(model, {"law": mask}, style="letters", shots=2, **options)
    assert law.categories[0].denominator.examples_from == "dev" and law.categories[0].denominator.split == "test"
    assert law.removals[0].target is None and law.removals[0].reason == "its own category was not asked"
    assert law.report().blocks[3].rows[0][2] == "not asked" and not law.removals[0].passes
    with pytest.raises(DataError, match="masks of 'astrology', which are not MMLU categories"):
        evaluate_domains(model, {"astrology": mask}, **options)
    model.model.layers[0].router.w1.weight.data += 1.0
    with pytest.raises(CheckpointError, match="mask for 'history'"):
        evaluate_domains(model, {"history": mask}, **options)


def test_a_mask_that_removes_nothing_changes_nothing(model, small, tmp_path):
    result = evaluate_domains(model, out=tmp_path, data=small, **{**QUICK, "ratio": 1e9})
    assert all(one.removed == 0 and one.reason == "no expert belongs to it" for one in result.removals)
    assert all(cell.value == cell.low == cell.high == 0 for one in result.removals for cell in one.delta)


def test_refusals(model, small, tmp_path):
    options = {"out": tmp_path, "data": small, **QUICK}
    with pytest.raises(ConfigError, match=r"controls\.count = 0"):
        evaluate_domains(model, **{**options, "controls": Controls(0)})
    with pytest.raises(ConfigError, match=r"ratio must be .* got 0\.5"):
        evaluate_domains(model, **{**options, "ratio": 0.5})
    write_mmlu(tmp_path / "one", subjects=["anatomy"])
    with pytest.raises(DataError, match=r"only questions of \['health'\];"):
        evaluate_domains(model, **{**options, "data": tmp_path / "one"})
    for subject in SUBJECTS[:3]:
        write_jsonl(tmp_path / "no_held_out" / "mmlu" / subject / "test.jsonl", mmlu_rows(subject, "test", 3))
    with pytest.raises(DataError, match=r"no validation or dev questions of MMLU below .*--identify_on same"):
        evaluate_domains(model, **{**options, "data": tmp_path / "no_held_out"})
    with pytest.raises(CheckpointError, match="monet eval domains"):
        DomainsResult.from_json({"format": DomainsResult.FORMAT})


@pytest.mark.parametrize("control_on", ["target", "all"])
@pytest.mark.slow
def test_parts_gather_to_the_whole(model, small, tmp_path, monkeypatch, control_on):
    options = {"data": small, "control_on": control_on, **QUICK}
    whole = evaluate_domains(model, out=tmp_path / "whole", **options)
    assert whole is not None
    for index in (1, 0):
        assert evaluate_domains(model, out=tmp_path / "parts", part=Part(index, 2), **options) is None
    monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("a question was asked again"))
    gathered = evaluate_domains(model, out=tmp_path / "parts", **options)
    assert gathered is not None and numbers(gathered) == numbers(whole)
