"""`monet eval facts`: one relation is lost with its expert, facts are resampled, and the numbers survive a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monet.cli import main
from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.selection import save_masks
from monet.eval.baselines.neurons import NeuronMask
from monet.eval.choices.texts import ORIGIN
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import PART_DONE
from monet.eval.core.controls import Controls
from monet.eval.core.document import Heatmap, Table, Text
from monet.eval.core.inputs import LabelledSequences
from monet.eval.core.text_overlap import Signature
from monet.eval.reporting.command import load, load_all, report_of
from monet.eval.suites.facts.evaluate import evaluate_facts
from monet.eval.suites.facts.read import read_facts
from monet.eval.suites.facts.results import FactsResult
from monet.eval.suites.facts.scoring import FactScorer
from monet.eval.suites.facts.verdicts import targets_of
from monet.masks.expert_mask import ExpertMask
from monet.parts import Part
from monet.training.language_models import LlamaForCausalLM
from tests.eval.suites.facts.conftest import all_rows, row, write_rows

QUICK = {"progress": False, "batch_size": 4, "bootstrap": Bootstrap(resamples=1000)}


@pytest.fixture
def facts(facts_file):
    return read_facts([facts_file])


@pytest.fixture
def result(planted, without_label, facts, tmp_path) -> FactsResult:
    """The expert of "left" is removed; the mask is judged by that relation."""
    found = evaluate_facts(
        planted, {"left": without_label(0)}, facts, out=tmp_path / "out", controls=Controls(39), **QUICK
    )
    assert found is not None
    return found


def without_date(result: FactsResult | None) -> dict:
    assert result is not None
    content = result.to_json()
    del content["provenance"]["date"]
    return content


def test_an_expert_holds_one_relation(result, tmp_path):
    assert FactsResult.load(tmp_path / "out") == result and result.unit == "expert" and not result.partial
    assert [one.name for one in result.domains] == ["sides", "centre"]
    assert [one.name for one in result.relations] == ["sides/left", "sides/right", "centre/middle"]
    assert [(one.facts, one.lines) for one in result.relations] == [(4, 8)] * 3
    assert all(one.accuracy.value == 1.0 and one.chance == pytest.approx(1 / 3) for one in result.relations)
    (removal,) = result.removals
    left, right, middle = removal.relations
    assert left.log_odds.value < -1 and left.log_odds.high < -1 and left.p == left.q == 1 / 40
    assert right.log_odds.value == middle.log_odds.value == 0 and right.p is None
    assert removal.target == "sides/left" and removal.passes and removal.q <= 0.05 and not removal.reason
    assert removal.domains[0].log_odds.value == pytest.approx(left.log_odds.value / 2), "four of eight facts"
    assert all(change.p is None for change in removal.domains), "controls are asked about the target only"
    assert "1 of 1 masks lower the log-odds of their target most" in result.sentence


def test_a_mask_of_another_domain_does_not_pass(planted, without_label, facts, tmp_path):
    masks = {"centre": without_label(0), "unknown": without_label(1)}
    found = evaluate_facts(planted, masks, facts, out=tmp_path, controls=Controls(2), **QUICK)
    assert found is not None
    centre, unknown = found.removals
    assert not centre.passes and centre.reason.startswith("sides lost as much or more; within the interval")
    assert (unknown.target, unknown.reason) == ("", "no domain or relation of the facts is its target")
    assert all(change.p is not None for change in unknown.relations), "no target: controls are asked about everything"
    assert "1 masks have no target" in found.sentence
    assert [row.name for row in found.effects().rows] == ["centre"]


def test_the_fact_is_the_unit_that_is_resampled(planted, without_label, tmp_path):
    """Twenty phrasings of two facts are two units, however often a fact is asked."""
    words = [f"left{a} left{b}" for a in range(4) for b in range(4)]
    rows = [row("left", n % 2, prompt=word, phrasing=n) for n, word in enumerate(words)]
    alone = [{**one, "subject": f"s{n}"} for n, one in enumerate(rows)]
    found = []
    for name, of in (("together", rows), ("alone", alone)):
        facts = read_facts([write_rows(tmp_path / name, of)])
        one = evaluate_facts(planted, {}, facts, out=tmp_path / "out", **QUICK)
        assert one is not None
        found.append(one.domains[0])
    together, apart = found
    assert (together.facts, apart.facts, together.lines, apart.lines) == (2, 16, 16, 16)
    assert together.log_odds.value == pytest.approx(apart.log_odds.value)
    values = {together.log_odds.low, together.log_odds.high}
    widths = [one.log_odds.high - one.log_odds.low for one in found]
    assert values != {apart.log_odds.low, apart.log_odds.high} and widths[0] != pytest.approx(widths[1])


def test_a_fact_counts_once_however_many_phrasings_it_has(planted, tmp_path):
    rows = [row("left", 0, prompt=f"left0 left{n}", phrasing=n) for n in range(1, 4)] + [row("right", 1)]
    facts = read_facts([write_rows(tmp_path / "facts", rows)])
    found = evaluate_facts(planted, {}, facts, out=tmp_path / "out", **QUICK)
    assert found is not None
    by_relation = [one.log_odds.value for one in found.relations]
    assert found.domains[0].log_odds.value == pytest.approx(np.mean(by_relation))
    assert found.relations[0].log_odds.low is None, "a relation of one fact has no interval"


def test_parts_and_stops_change_nothing(planted, without_label, facts, tmp_path, monkeypatch):
    def run(folder, part=None):
        masks = {"left": without_label(0), "sides": without_label(2)}
        return evaluate_facts(planted, masks, facts, out=tmp_path / folder, controls=Controls(2), part=part, **QUICK)

    whole = run("whole")
    assert [run("parts", Part(index, 3)) for index in range(3)] == [None] * 3
    original, calls = FactScorer.score, []

    def stops(self, questions):
        calls.append(len(questions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, questions)

    monkeypatch.setattr(FactScorer, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    assert without_date(run("stopped")) == without_date(whole)
    monkeypatch.setattr(FactScorer, "score", lambda *_: pytest.fail("a line was asked again"))
    assert without_date(run("parts")) == without_date(whole)


def test_held_out_by_content(planted, without_label, facts, tokenizer, tmp_path):
    """Masks that were chosen on these lines are not held out; masks that were chosen on other text are."""

    def held_out(texts, folder):
        sequences = [tokenizer(text)["input_ids"] for text in texts]
        chosen_on = LabelledSequences(["x"], sequences, [0] * len(sequences))
        part = {**chosen_on.description, **Signature.of(chosen_on).notes()}
        mask = without_label(0, provenance={"statistics": {"parts": [part]}})
        found = evaluate_facts(planted, {"left": mask}, facts, out=folder, controls=Controls(0), **QUICK)
        assert found is not None
        texts = [block for block in report_of(found).blocks if isinstance(block, Text)]
        assert texts[0].text == ORIGIN[found.provenance["held_out"]]
        return found.provenance["held_out"]

    assert held_out([facts.questions[3].text, "right0 right1"], tmp_path) is False
    assert held_out(["right0 right1", "right1 right3 right3 right3"], tmp_path) is True
    unknown = evaluate_facts(planted, {"left": without_label(0)}, facts, out=tmp_path, controls=Controls(0), **QUICK)
    assert unknown is not None and unknown.provenance["held_out"] is None and not unknown.removals[0].passes
    assert unknown.removals[0].reason == "no random control was measured"


def test_controls_of_equal_mass_and_what_they_take(planted, without_label, facts, tmp_path):
    weights = torch.zeros(1, 16, 16, dtype=torch.float64)
    weights[0, range(3), range(3)] = 1.0
    controls = Controls(3, "mass", weights={"": weights}, measured={"mass": {"": weights}})
    found = evaluate_facts(planted, {"left": without_label(0)}, facts, out=tmp_path, controls=controls, **QUICK)
    assert found is not None
    assert found.provenance["controls"]["kind"] == "mass" and found.provenance["controls"]["achieved"]
    assert any("mass that random controls take" in line for line in found.lines())


def test_a_dense_model_without_neurons(tokenizer, facts, llama, tmp_path):
    torch.manual_seed(0)
    shape = llama.config
    shape.vocab_size = 12
    model = LlamaForCausalLM(shape).eval()
    keep_LF = torch.ones(2, 20, dtype=torch.bool)
    keep_LF[0, :5] = False
    tokenizer.save_pretrained(tmp_path / "tokens")
    found = evaluate_facts(
        model, {"sides": NeuronMask(keep_LF)}, facts, out=tmp_path / "out", tokenizer=str(tmp_path / "tokens"),
        controls=Controls(2), control_on="all", **QUICK,
    )  # fmt: skip
    assert found is not None and (found.unit, found.group) == ("neuron", "layer")
    (removal,) = found.removals
    assert removal.removed_per_group == [5, 0] and removal.domains[0].log_odds.value != 0
    assert all(change.random is not None for change in (*removal.domains, *removal.relations))


def test_targets(facts):
    assert targets_of(["sides", "left", "x"], facts) == {"sides": "sides", "left": "sides/left", "x": ""}
    assert targets_of(["x"], facts, {"x": "centre/middle"}) == {"x": "centre/middle"}
    assert targets_of(["sides"], facts, {"sides": ""}) == {"sides": ""}
    with pytest.raises(ConfigError, match="targets: there is no mask 'y'; the masks are x"):
        targets_of(["x"], facts, {"y": "sides"})
    with pytest.raises(ConfigError, match="'side' of mask 'x' is no domain or relation of the facts; choose"):
        targets_of(["x"], facts, {"x": "side"})


def test_a_mask_that_removes_nothing(planted, facts, tmp_path):
    nothing = ExpertMask.keep_all(planted.config)
    found = evaluate_facts(planted, {"sides": nothing}, facts, out=tmp_path, controls=Controls(2), **QUICK)
    assert found is not None
    assert found.removals[0].reason == "no expert belongs to it" and found.removals[0].domains[0].log_odds.value == 0


def test_lines_without_a_score_are_counted(planted, tmp_path):
    long = row("left", 0, prompt=" ".join(["left1"] * 40), phrasing="long")
    facts = read_facts([write_rows(tmp_path / "facts", [*all_rows(), long])])
    found = evaluate_facts(planted, {}, facts, out=tmp_path / "out", **QUICK)
    assert found is not None and found.partial and found.domains[0].unscored == {"longer than the context": 1}
    assert "sides: 1 of 17 lines have no score (longer than the context)" in found.lines()
    alone = read_facts([write_rows(tmp_path / "alone", [*all_rows(), {**long, "relation": "long"}])])
    with pytest.raises(DataError, match=r"sides/long: no line has a score \(longer than the context\)"):
        evaluate_facts(planted, {}, alone, out=tmp_path / "out", **QUICK)


def test_folder_to_report(planted_folder, planted, without_label, facts_file, tmp_path, capsys):
    save_masks(tmp_path / "masks", {"left": without_label(0)}, {"labels": {"left": {"experts": 1}}})
    words = ["--model", str(planted_folder), "--facts", str(facts_file), "--masks", str(tmp_path / "masks")]
    words += ["--out", str(tmp_path / "out"), "--resamples", "1000", "--controls.count", "3", "--progress", "false"]
    assert main(["eval", "facts", *words, "--part", "1/2"]) == 0 and PART_DONE in capsys.readouterr().out
    assert main(["eval", "facts", *words, "--targets", "{left: sides/left}"]) == 0
    shown = capsys.readouterr().out
    result = load(tmp_path / "out")
    assert isinstance(result, FactsResult) and result.sentence in shown
    assert f"result: {tmp_path / 'out' / 'result.json'}; its tables and heat maps: monet report" in shown
    assert main(["report", "--result", str(tmp_path / "out"), "--out", str(tmp_path / "report")]) == 0
    assert len(list((tmp_path / "report").glob("figure-*.png"))) == 3
    report = report_of(result)
    tables = [block for block in report.blocks if isinstance(block, Table)]
    assert [len(table.rows) for table in tables] == [1, 1, 2, 3]
    assert all(len(cells) == len(table.header) for table in tables for cells in table.rows)
    maps = [block for block in report.blocks if isinstance(block, Heatmap)]
    assert [list(one.columns) for one in maps] == [["sides", "centre"]] * 2 + [[one.name for one in result.relations]]
    assert FactsResult.from_json(report.numbers) == result
    absent = [*words[:3], str(tmp_path / "absent"), *words[4:]]
    assert main(["eval", "facts", *absent]) == 3 and "no readable file of facts" in capsys.readouterr().err


def test_seeds_are_compared(planted, without_label, facts, tmp_path):
    for seed in range(2):
        with torch.no_grad():
            planted.model.layers[0].moe.b[5, 0] = 1.0 - 2.0 * seed  # an expert that is never active
        mask = without_label(0, fingerprint=planted.fingerprint())
        evaluate_facts(planted, {"left": mask}, facts, out=tmp_path / str(seed), controls=Controls(1), **QUICK)
    combined = load_all([tmp_path / "0", tmp_path / "1"], ["a", "a"])
    assert "left" in str(report_of(combined).numbers)


def test_a_mask_of_another_model(planted, without_label, facts, tmp_path):
    mask = without_label(0, fingerprint="other")
    with pytest.raises(CheckpointError, match="mask for 'left'"):
        evaluate_facts(planted, {"left": mask}, facts, out=tmp_path, **QUICK)


def test_only_the_unmasked_model(planted, facts, tmp_path):
    found = evaluate_facts(planted, {}, facts, out=tmp_path, **QUICK)
    assert found is not None and not found.removals and found.provenance["held_out"] is None
    assert [type(block) for block in report_of(found).blocks].count(Table) == 2
    with pytest.raises(ConfigError, match="without judged masks has nothing to compare"):
        found.effects()
