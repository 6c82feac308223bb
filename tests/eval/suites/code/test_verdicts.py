"""The report about a language's mask: its controls, its verdict, and the text that it was chosen on."""

import pytest

from monet import ExpertMask
from monet.eval.attribution.statistics.prompt_hashes import KEY, packed, prompt_hash
from monet.eval.core.controls import Controls
from monet.eval.core.estimate import Estimate
from monet.eval.reporting.command import report_of
from monet.eval.suites.code.evaluate import evaluate_code
from monet.eval.suites.code.generation import Sampler, Sampling
from monet.eval.suites.code.problems import ProblemSet
from monet.eval.suites.code.results import CodeResult
from tests.eval.scaled import ScaledLayer


def wrong_languages(bodies, wrong):
    """A sampler that writes wrong bodies in the languages that `wrong` names for a mask, and right ones in others."""

    def completions(self, mask, asked, advance=lambda _: None):
        return {
            one.name: [bodies[one.language][one.name]["wrong" if one.language in wrong(mask) else "right"]] * 2
            for one in asked
        }

    return completions


def test_verdicts_have_the_one_meaning(model, tokenizer, problems, bodies, tmp_path, sandbox, libraries, monkeypatch):
    chosen = ProblemSet({name: problems.problems[name] for name in ("python", "javascript")}, {}, {}, "here")
    removed = {"python": [0, 1], "javascript": [2, 3], "php": [4], "lua": []}
    masks = {name: ExpertMask.from_removed(model.config, {0: ids}, {"label": name}) for name, ids in removed.items()}

    def wrong(mask):
        # JavaScript's mask lowers both languages, Python's only its own; controls lower none.
        label = None if mask is None else mask.provenance.get("label")
        return {"python": ["python"], "javascript": ["python", "javascript"]}.get(label, [])

    monkeypatch.setattr(Sampler, "completions", wrong_languages(bodies, wrong))
    options = {"sandbox": sandbox, "libraries": [libraries], "sampling": Sampling(2, max_new_tokens=8), "ks": [1]}
    result = evaluate_code(model, tokenizer, masks, chosen, out=tmp_path, progress=False, **options)
    if "javascript" in result.unavailable:
        pytest.skip(result.unavailable["javascript"])
    found = {one.name: one for one in result.verdicts}
    assert found.keys() == {"python", "javascript"}, "no other mask's language was evaluated"
    assert found["python"].passes and (found["python"].controls, found["python"].q) == (19, 0.05)
    assert not found["javascript"].passes and found["javascript"].reason == "python lost as much or more"
    assert "1 of 2 masks lower their own language most, and by more than chance explains." in result.sentence
    assert CodeResult.load(tmp_path) == result


def test_an_empty_mask_and_few_controls(model, tokenizer, problems, bodies, tmp_path, sandbox, monkeypatch):
    chosen = ProblemSet({"python": problems.problems["python"]}, {}, {}, "here")
    monkeypatch.setattr(Sampler, "completions", wrong_languages(bodies, lambda mask: ["python"] if mask else []))
    masks = {"py": ExpertMask.from_removed(model.config, {0: [1]}), "Python": ExpertMask.keep_all(model.config)}
    options = {"sandbox": sandbox, "sampling": Sampling(2, max_new_tokens=8), "ks": [1], "controls": Controls(0)}
    result = evaluate_code(model, tokenizer, masks, chosen, out=tmp_path, progress=False, **options)
    found = {one.name: one for one in result.verdicts}
    assert found["py"].reason == "no random control was measured; no other language was evaluated"
    assert found["py"].target.value == -1 and found["py"].random is None and found["py"].p == 1
    assert found["Python"].reason == "no expert belongs to it" and found["Python"].target == Estimate(0, 0, 0)
    assert found["py"].others_mean is None


def test_any_intervention_is_evaluated(model, tokenizer, problems, tmp_path):
    """An intervention that is not a mask passes through generation, result and report; no program is run."""
    layers = len(model.model.layers)
    masks = {"python": ScaledLayer(1, layers), "english": ScaledLayer(0, layers, factor=2.0)}
    few = {"python": problems.problems["python"][:2], "lua": problems.problems["lua"][:1]}
    result = evaluate_code(
        model, tokenizer, masks, ProblemSet(few, {}, {}, "here"), out=tmp_path, controls=Controls(2), control_on="all",
        sampling=Sampling(2, max_new_tokens=4), ks=[1], progress=False,
    )  # fmt: skip
    assert (result.unit, result.group) == ("layer", "model") and result.masks[0].removed == 1
    assert len(result.conditions) == 7 and all(len(one.scores) == 2 for one in result.conditions)
    assert CodeResult.load(tmp_path) == result
    table = next(block for block in report_of(result).blocks if block.title == "Layers removed, by model")
    assert table.rows[1] == ["english", "1", "1", f"{1 / layers:.2%}"]


def test_problems_that_masks_were_chosen_on_are_told(model, tokenizer, problems, tmp_path):
    chosen = ProblemSet({"python": problems.problems["python"][:1]}, {}, {}, "here")
    for text, held_out in ((chosen.problems["python"][0].text, False), ("another", True)):
        notes = {"statistics": {"parts": [{KEY: packed([prompt_hash(text)])}]}}
        masks = {"python": ExpertMask.from_removed(model.config, {0: [1]}, notes)}
        result = evaluate_code(
            model, tokenizer, masks, chosen, out=tmp_path, controls=Controls(0), sampling=Sampling(1, max_new_tokens=2),
            ks=[1], progress=False,
        )  # fmt: skip
        assert result.held_out is held_out


def test_a_limit_changes_no_control(problems):
    few = problems.first(1)
    assert few.fingerprint == problems.fingerprint == few.first(1).fingerprint
    assert problems.fingerprint != ProblemSet({"lua": problems.problems["lua"]}, {}, {}, "here").fingerprint
