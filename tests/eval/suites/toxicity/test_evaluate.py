"""The suite on a planted model: it finds removed parts, interrupted runs give equal results, no score is invented."""

import json
import math

import numpy as np
import pytest
import torch

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.statistics.prompt_hashes import KEY, packed, prompt_hash
from monet.eval.core.chance import Chance
from monet.eval.core.controls import Controls
from monet.eval.reporting.command import report_of
from monet.eval.suites.toxicity import scoring
from monet.eval.suites.toxicity.evaluate import OrdinaryText, evaluate_toxicity
from monet.eval.suites.toxicity.general import read_general
from monet.eval.suites.toxicity.prompts import Prompts
from monet.eval.suites.toxicity.results import ALL, ToxicityResult
from monet.eval.suites.toxicity.sampling import Decoding
from monet.eval.suites.toxicity.scoring import KeptScores
from monet.masks.expert_mask import ExpertMask
from monet.parts import Part
from tests.eval.scaled import ScaledLayer
from tests.eval.suites.toxicity.conftest import Reader

FEW = Decoding(samples=6, new_tokens=4)


def removing(*pairs):
    """A mask of the planted model. Expert (d, d) makes the words of label d likelier; the last label's are rude."""
    keep_REE = torch.ones(1, 16, 16, dtype=torch.bool)
    for pair in pairs:
        keep_REE[(0, *pair)] = False
    return ExpertMask(keep_REE, {"made_by": "test", "pairs": [list(pair) for pair in pairs]})


@pytest.fixture
def evaluate(planted_model, words_tokenizer, word_prompts, tmp_path):
    def evaluated(reader=None, masks=None, **changes):
        given = {"out": tmp_path / "run", "decoding": FEW, "batch_size": 12, "progress": False, "controls": Controls(1)}
        masks = {"rude": removing((2, 2)), "calm": removing((0, 0))} if masks is None else masks
        prompts = changes.pop("prompts", word_prompts)
        return evaluate_toxicity(
            planted_model, words_tokenizer, masks, prompts, reader or Reader(), **{**given, **changes}
        )

    return evaluated


def without_date(result: ToxicityResult) -> dict:
    content = result.to_json()
    del content["provenance"]["date"]
    return content


def test_the_planted_purge_is_found_and_its_controls_are_not(evaluate, tmp_path):
    result = evaluate(controls=Controls(2))
    names = ["no mask", "rude", "random 0 like rude", "random 1 like rude", "calm", "random 0 like calm",
             "random 1 like calm"]  # fmt: skip
    assert [row.name for row in result.rows] == names
    rows = {row.name: row.cells for row in result.rows}
    toxic = rows["rude"]["toxic"]
    assert rows["no mask"]["toxic"].expected_max.value > 0.7
    assert toxic.expected_max_delta.high < -0.1 and toxic.expected_max_delta.high < toxic.random_expected_max_delta.low
    assert abs(rows["rude"]["non-toxic"].expected_max_delta.value) < 0.1
    assert rows["random 0 like rude"][ALL].expected_max_delta.value == 0.0
    assert rows["calm"]["toxic"].expected_max_delta.value == 0.0
    assert toxic.expected_max_chance == rows["rude"]["toxic"].probability_chance == Chance(2, 1 / 3, 2 / 3)
    assert rows["no mask"]["toxic"].expected_max_chance is None is rows["random 0 like calm"][ALL].expected_max_chance
    assert result.rows[1].removed == 1 and not result.partial and "PARTIAL" not in result.sentence
    assert result == ToxicityResult.load(tmp_path / "run") == ToxicityResult.load(tmp_path / "run" / "result.json")


def test_texts_are_read_some_prompts_at_a_time(evaluate, monkeypatch, tmp_path):
    whole, asked, of = evaluate(), [], KeptScores.of
    monkeypatch.setattr(scoring, "PROMPTS_AT_ONCE", 5)
    monkeypatch.setattr(
        KeptScores, "of", lambda self, texts, *rest: of(self, asked.append([*texts]) or asked[-1], *rest)
    )
    again = evaluate(kept_scores=tmp_path / "others")
    assert without_date(again) == without_date(whole)
    assert [len(texts) for texts in asked] == [6 * 5, 6 * 5, 6 * 2] * len(whole.rows)


def test_the_numbers_are_those_of_the_continuations(evaluate, tmp_path):
    result = evaluate(masks={})
    (kept,) = (tmp_path / "run" / "outcomes").glob("*.jsonl")
    lines = [json.loads(line) for line in kept.read_text().splitlines()[1:]]
    best = [max(Reader().score(line["outcome"]), key=lambda score: score.value).value for line in lines]
    assert len(lines) == 12 and all(len(line["outcome"]) == 6 for line in lines)
    cell = result.rows[0].cells[ALL]
    assert cell.expected_max.value == pytest.approx(np.mean(best))
    assert cell.probability.value == pytest.approx(np.mean([value > 0.5 for value in best]))


def test_what_a_scorer_left_open_is_marked_and_healed(evaluate, tmp_path):
    whole = evaluate(out=tmp_path / "whole")
    fails = Reader(lambda text: "rate limited" if text.startswith("grim") else None)
    partial = evaluate(fails)
    assert partial.partial and partial.to_json()["partial"] and set(partial.missing) == {"scorer: rate limited"}
    missing = partial.rows[0].cells[ALL].missing["scorer: rate limited"]
    assert partial.rows[0].cells[ALL].prompts == 12 - missing < 12
    total = sum(partial.missing.values())
    assert f"PARTIAL: {total} of 60 outcomes are missing ({total} scorer: rate limited)" in partial.sentence
    assert partial.provenance["texts_without_score"]["rate limited"] > 0
    report = report_of(partial)
    assert report.blocks[0].text.startswith("PARTIAL") and "without an outcome" in report.blocks[-1].title
    healing = Reader()
    healed = evaluate(healing)
    assert all(text.startswith("grim") or "weather" in text for text in healing.asked)
    assert without_date(healed) == without_date(whole)


def test_killed_in_either_stage_it_gives_the_same_numbers(evaluate, planted_model, tmp_path, monkeypatch):
    whole = evaluate(out=tmp_path / "whole")
    generate, calls = planted_model.generate, []

    def dies(**kwargs):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return generate(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(planted_model, "generate", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate()

    class Dies(Reader):
        def score(self, texts):
            if len(self.asked) > 20:
                raise KeyboardInterrupt
            return super().score(texts)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Dies())
    assert not (tmp_path / "run" / "result.json").exists()
    last = Reader()
    assert without_date(evaluate(last)) == without_date(whole)
    assert len(last.asked) > 20


def test_a_scorer_that_is_down_is_told_before_the_work(evaluate, capsys):
    result = evaluate(Reader(lambda text: "unreachable"), masks={})
    assert "the scorer does not answer (unreachable" in capsys.readouterr().err
    assert result.partial and result.rows[0].cells[ALL].expected_max is None
    assert "none of 12 prompts has all its scores" in result.sentence
    table = next(block for block in report_of(result).blocks if getattr(block, "header", None))
    assert list(table.rows[0][3:6]) == ["0 of 12", "-", "-"]


def test_losses_and_general_ability_stand_beside(evaluate, planted_model, planted_data, tmp_path):
    general = {
        "format": "monet-general/2", "partial": False, "provenance": {"model_fingerprint": planted_model.fingerprint()},
        "rows": [
            {"condition": name, "control": control, "removed": removed, "shots": 0,
             "average": {"value": value, "low": 0.4, "high": 0.6}}
            for name, control, removed, value in
            [("no mask", None, 0, 0.5), ("rude", None, 1, 0.45), ("random 0 like rude", 0, 1, 0.5)]
        ],
    }  # fmt: skip
    (tmp_path / "general").mkdir()
    file = tmp_path / "general" / "result.json"
    file.write_text(json.dumps(general))
    result = evaluate(text=OrdinaryText(planted_data), general=read_general([file.parent]))
    rows = {row.name: row for row in result.rows}
    assert rows["no mask"].perplexity == pytest.approx(math.exp(rows["no mask"].loss.value))
    assert rows["rude"].loss_delta.low > 0 and rows["random 0 like rude"].loss_delta.value == pytest.approx(0, abs=1e-6)
    assert rows["no mask"].general == {"0-shot": 0.5} and rows["rude"].general == {"0-shot": 0.45}
    assert rows["calm"].general == {} == rows["random 0 like rude"].general, "its controls are drawn for questions"
    assert rows["rude"].random_loss_delta.value == pytest.approx(rows["random 0 like rude"].loss_delta.value)
    report = report_of(result)
    table = next(block for block in report.blocks if block.title == "Effects of the masks on other measures")
    assert table.header == ["Condition", "Perplexity", "Loss change", "Loss change, random", "General average, 0-shot"]
    assert [row[0] for row in table.rows] == ["no mask", "rude", "calm"]
    assert table.rows[0][-1] == "0.500" and table.rows[2][-1] == "-"
    curves = [block for block in report.blocks if type(block).__name__ == "Curve"]
    assert len(curves) == 3
    masks, random = curves[0].series
    assert masks.x == [0.0, 100 / 256, 100 / 256] == random.x and random.name == "random controls"
    assert masks.low[0] == masks.y[0] == 0 and masks.low[1] < masks.y[1] < masks.high[1]
    general["provenance"]["mask_hashes"] = {"no mask": "none", "random 0 like rude": "another's"}
    file.write_text(json.dumps(general))
    evaluate(general=read_general([file]))
    general["provenance"]["mask_hashes"]["rude"] = "another's"
    file.write_text(json.dumps(general))
    with pytest.raises(CheckpointError, match="'rude' is a different mask of the same size"):
        evaluate(general=read_general([file]))
    general["rows"][1]["removed"] = 2
    file.write_text(json.dumps(general))
    with pytest.raises(CheckpointError, match="'rude' removes 1 experts here and 2 in the general result"):
        evaluate(general=read_general([file]))
    general["provenance"]["model_fingerprint"] = "other"
    file.write_text(json.dumps(general))
    with pytest.raises(CheckpointError, match="another model"):
        evaluate(general=read_general([file]))
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="run `monet eval general` again"):
        read_general([file])


def test_refusals(evaluate, planted_model, word_prompts, tmp_path):
    with pytest.raises(ConfigError, match="threshold must be in"):
        evaluate(threshold=1.0)
    with pytest.raises(DataError, match="at least two prompts, got 1"):
        evaluate(prompts=Prompts(word_prompts.prompts[:1]))
    with pytest.raises(CheckpointError, match="mask for 'other': a mask of shape"):
        evaluate(masks={"other": ExpertMask(torch.ones(2, 5, 5, dtype=torch.bool))})
    with pytest.raises(DataError, match="masks of experts and layers cannot be judged together"):
        evaluate(masks={"a": removing((0, 0)), "b": ScaledLayer(0, 1)})
    with removing((0, 0)).applied_to(planted_model), pytest.raises(ConfigError, match="already applied"):
        evaluate()
    for content in ("{}", "[]", json.dumps({"format": "monet-toxicity/2"}), "nothing"):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(CheckpointError):
            ToxicityResult.load(tmp_path)


def test_soft_masks_flow_through(evaluate):
    keep_REE = torch.ones(1, 16, 16)
    keep_REE[0, 2, 2] = 0.2
    result = evaluate(masks={"half": ExpertMask(keep_REE), "whole": removing((2, 2))}, controls=Controls(0))
    half, whole = (row.cells["toxic"].mean for row in result.rows[1:])
    assert whole + 0.1 < half < result.rows[0].cells["toxic"].mean


def test_parts_gather_to_the_whole(evaluate, planted_model, planted_data, monkeypatch, tmp_path):
    options = {"controls": Controls(2), "text": OrdinaryText(planted_data)}
    whole = evaluate(out=tmp_path / "whole", **options)
    for index in range(3):
        assert evaluate(part=Part(index, 3), **options) is None
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.setattr(planted_model, "generate", lambda **_: pytest.fail("a prompt was continued again"))
    reader = Reader()
    assert without_date(evaluate(reader, **options)) == without_date(whole)
    assert len(reader.asked) == 1  # the test of whether it answers at all


def test_any_intervention_is_evaluated(evaluate, planted_data, tmp_path):
    masks = {"off": ScaledLayer(0, 1), "same": ScaledLayer(0, 1, factor=1.0)}
    result = evaluate(masks=masks, controls=Controls(3), text=OrdinaryText(planted_data))
    off = result.masks[0]
    assert [row.name for row in result.rows] == ["no mask", "off", *(f"random {n} like off" for n in range(3))]
    assert (result.unit, result.group, off.removed, off.share) == ("layer", "model", 1, 1.0)
    assert abs(off.cells[ALL].expected_max_delta.value) > 0.1 and off.loss_delta.low > 0
    # There is one layer, so each control equals the mask and has the same effect.
    assert off.cells[ALL].expected_max_chance == Chance(3, 1.0, 1.0)
    assert off.cells[ALL].random_expected_max_delta.value == pytest.approx(off.cells[ALL].expected_max_delta.value)
    assert "These masks remove no layer and change nothing: same." in str(report_of(result).blocks)
    assert ToxicityResult.load(tmp_path / "run") == result


def test_nineteen_controls_can_show_that_a_purge_is_no_chance(evaluate):
    result = evaluate(controls=None, masks={"rude": removing((2, 2))})
    cell = result.masks[0].cells[ALL]
    assert cell.expected_max_chance == Chance(19, 0.05, 0.05) and cell.expected_max_chance.above
    assert "p 0.05, q 0.05 (19 random controls)" in result.sentence
    table = next(
        block for block in report_of(result).blocks if block.title.startswith("Masks compared with random controls")
    )
    assert table.rows[0][4:] == ["19", "0.05", "0.05", "yes"]


@pytest.mark.parametrize(
    ("chosen_on", "held_out", "words"),
    [
        ("others", True, "chosen on held-out prompts"),
        ("these", False, "chosen on 2 of the 12 prompts that they are judged on"),
        (None, None, "no record of the prompts"),
    ],
)
def test_the_result_says_whether_masks_were_chosen_on_its_prompts(evaluate, word_prompts, chosen_on, held_out, words):
    texts = {"others": ["another prompt"], "these": [f" {one.text}\n" for one in word_prompts.prompts[:2]]}
    notes = {"made_by": "select", "statistics": {"parts": [{}]}}
    if chosen_on is not None:
        notes["statistics"]["parts"] = [{KEY: packed(map(prompt_hash, texts[chosen_on])), "split": "x"}]
    mask = ExpertMask(removing((2, 2)).keep_REE, notes)
    result = evaluate(masks={"rude": mask})
    assert result.held_out is held_out
    block = next(block for block in report_of(result).blocks if words in getattr(block, "text", ""))
    assert block.caution is (held_out is not True)
    assert result.provenance["masks"]["rude"]["statistics"]["parts"][0].get(KEY) in (None, 1, 2)
