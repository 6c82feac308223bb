"""From index to scores: planted experts are found, controls are not, and killed runs continue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monet.errors import ConfigError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.explain.embedders import WordsEmbedder
from monet.eval.explain.excerpts import Excerpts
from monet.eval.explain.explain import NO_CONTEXT, explain
from monet.eval.explain.explainers import LabelExplainer, TokensExplainer
from monet.eval.explain.judges import LabelJudge, TokensJudge
from monet.eval.explain.material import materials
from monet.eval.explain.records import SCORES, Explanation, read_lines
from monet.eval.explain.result import ScoreResult, result_of
from monet.eval.explain.score import Scored, score
from monet.eval.inspection.weights import unit_weights

BOOTSTRAP = Bootstrap(resamples=1000)


def explained(index, units, explainer, name="e"):
    lines = explain(index, units, explainer, name, progress=False)
    return {(line.group, line.unit): line for line in lines}


def scores(index, model, units, scored, name="s", **options):
    options = {"around": 2, "bootstrap": BOOTSTRAP, "progress": False, **options}
    return score(index, model, units, scored, name, **options)


@pytest.mark.parametrize(
    ("scorer", "explainer", "judge"),
    [("detection", TokensExplainer(), TokensJudge()), ("fuzzing", TokensExplainer(), TokensJudge()),
     ("detection", LabelExplainer(), LabelJudge()), ("embedding", TokensExplainer(), None)],
)  # fmt: skip
def test_planted_experts_are_found_and_controls_are_not(planted, planted_model, units, scorer, explainer, judge):
    known = explained(planted, units, explainer)
    embedder = WordsEmbedder() if judge is None else None
    scored = Scored(scorer, judge, embedder, known, {"explainer": explainer.key["explainer"]})
    lines = scores(planted, planted_model, units, scored)
    for line in lines:
        assert line.score >= 0.99 and line.interval[0] <= line.score <= line.interval[1] and line.failed == 0
        assert line.control_permuted <= 0.5 and line.control_empty == 0.5 and line.n == 16
        assert line.explanation == known[line.group, line.unit].explanation
        assert line.rate == pytest.approx(1 / 3, abs=0.1)
    result = result_of("s", lines, BOOTSTRAP, {})
    assert result.score.value >= 0.99 and result.gain.low > 0.4 and "permuted" in result.sentence
    assert ScoreResult.from_json(result.to_json()) == result
    assert list(read_lines(planted.folder / SCORES / "s.jsonl", type(lines[0]))) == lines


def test_the_odd_one_of_a_planted_expert_is_found(planted, planted_model, units):
    for line in scores(planted, planted_model, units, Scored("intruder", LabelJudge(), None, {}, {})):
        assert line.score == 1.0 and line.n == 2 and line.chance == 0.2 and line.control_empty is None


def test_excerpts_for_scoring_are_active_or_not_and_unseen(planted, planted_model, units):
    excerpts = Excerpts(planted, around=2)
    used = [frozenset({excerpts.of(unit, "score")[0].source}) for unit in units]
    for unit, one, seen in zip(units, materials(planted_model, excerpts, units, 6, used), used, strict=True):
        assert len(one.active) == len(one.inactive) == 6
        for item in [*one.active, *one.inactive]:
            weight_T = unit_weights(planted_model, planted.windows[item.window], [unit])[:, 0]
            own_T = weight_T[item.start : item.start + len(item.ids)]
            assert (item.interval >= 0) == bool((own_T > 0).any()) and item.source not in seen
        assert [len(item.marks) for item in one.active] == [len(item.marks) for item in one.inactive]


def test_explanations_use_only_their_side_and_units_without_contexts_say_so(planted, units):
    silent = planted.units.unit(0, 5)
    lines = explain(planted, [*units, silent], TokensExplainer(), "e", contexts=4, progress=False)
    assert [line.failed for line in lines] == ["", "", "", NO_CONTEXT] and lines[3].explanation == ""
    excerpts = Excerpts(planted)
    for unit, line in zip(units, lines, strict=False):
        scoring = {one.source for one in excerpts.of(unit, "score")}
        assert len(line.contexts) == 4 and scoring.isdisjoint((one.label, one.document) for one in line.contexts)
        named = [int(text.strip('"[]')) for text in line.explanation.removeprefix("tokens: ").split(", ")]
        assert {token // 4 for token in named} == {unit.i}


def test_a_killed_run_continues_with_the_same_lines(planted, planted_model, units):
    scored = Scored("detection", TokensJudge(), None, explained(planted, units, TokensExplainer()), {})
    scores(planted, planted_model, units, scored)
    path = planted.folder / SCORES / "s.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    scores(planted, planted_model, units, scored)
    assert path.read_bytes() == whole
    with pytest.raises(ConfigError, match="other settings"):
        scores(planted, planted_model, units, scored, positives=5)


def test_an_explanation_that_is_missing_is_scored_as_an_empty_one(planted, planted_model, units):
    known = explained(planted, units, TokensExplainer())
    key = units[0].group, units[0].number
    known[key] = replace(known[key], explanation="", failed="no answer")
    first, *others = scores(planted, planted_model, units, Scored("detection", TokensJudge(), None, known, {}))
    assert first.score == 0.5 and all(line.score == 1.0 for line in others)
    assert isinstance(known[key], Explanation)
