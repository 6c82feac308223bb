"""The scorer that replaces the paper's, and how a comparison shows that the scorer differs."""

import dataclasses
import inspect
import shlex
from pathlib import Path

import pytest
import yaml

from monet.cli import main
from monet.eval.core.estimate import Estimate
from monet.eval.paper import reproduce, rows
from monet.eval.paper.request import Request
from monet.eval.paper.scorer import REAL_TOXICITY_PROMPTS, TOXIGEN
from monet.eval.paper.tables import TABLES
from monet.eval.scorers.scorers import ScorerSettings
from monet.eval.suites.toxicity.results import ALL, Cell, Row, ToxicityResult

ROOT = Path(__file__).resolve().parents[3]
TOXIC_BERT = {"kind": "classifier", "name": "unitary/toxic-bert", "label": 0}
TOXIGEN_ROBERTA = {"kind": "classifier", "name": "tomh/toxigen_roberta", "label": 1}
PERSPECTIVE = {"kind": "perspective", "url": ScorerSettings.url, "attribute": "TOXICITY"}


def test_no_default_needs_the_perspective_api(monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    assert inspect.signature(reproduce.run).parameters["scorer"].default == ScorerSettings(kind="classifier")
    for file in (ROOT / "configs").rglob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        assert content.get("scorer", {}).get("kind") != "perspective", file
    for table in TABLES.values():
        assert all("PERSPECTIVE" not in need.missing(Request()) for need in table.needs)
        assert all("Perspective" not in need.what for need in table.needs)
        for step in table.steps(Request(model="M"), Path("OUT")):
            assert "perspective" not in step.command


@pytest.mark.parametrize("table", [4, 5])
def test_a_table_scores_with_its_own_classifier_unless_another_is_named(table):
    scorer = TABLES[table].scorer
    assert scorer is not None
    assert scorer.chosen(ScorerSettings(kind="classifier")) == scorer.classifier
    on_gpu = scorer.chosen(ScorerSettings(kind="classifier", device="cuda", batch_size=7))
    assert on_gpu == dataclasses.replace(scorer.classifier, device="cuda", batch_size=7)
    for named in (ScorerSettings(), ScorerSettings(kind="perspective"), ScorerSettings(kind="classifier", model="C")):
        assert scorer.chosen(named) is named
    step = TABLES[table].steps(Request(model="M"), Path("OUT"))[-1]
    assert f"--scorer.model {scorer.classifier.model}" in step.command
    step = TABLES[table].steps(Request(model="M", scorer=ScorerSettings()), Path("OUT"))[-1]
    assert "--scorer.kind words" in step.command


def test_the_paper_s_scorer_is_known_by_its_name():
    assert REAL_TOXICITY_PROMPTS.is_that_of(PERSPECTIVE)
    assert not REAL_TOXICITY_PROMPTS.is_that_of({**PERSPECTIVE, "url": "http://127.0.0.1:1/analyze"})
    assert not REAL_TOXICITY_PROMPTS.is_that_of(TOXIC_BERT)
    assert TOXIGEN.is_that_of(TOXIGEN_ROBERTA)
    assert TOXIGEN.is_that_of({**TOXIGEN_ROBERTA, "name": "/m/toxigen_roberta/"})
    assert not TOXIGEN.is_that_of(TOXIC_BERT) and not TOXIGEN.is_that_of({"kind": "words"})
    assert "does not report its version" in REAL_TOXICITY_PROMPTS.caution(PERSPECTIVE)
    assert TOXIGEN.caution(TOXIGEN_ROBERTA) == TOXIGEN.note(TOXIGEN_ROBERTA) == ""


def leave_result(folder: Path, scorer: dict) -> None:
    """A toxicity result in the form of `monet eval toxicity`, only for the unmasked model."""
    cell = Cell(2, {}, Estimate(0.3, 0.2, 0.4), Estimate(0.5, 0.4, 0.6), 0.1, 0.0)
    row = Row("no mask", None, None, 0, 0.0, {ALL: cell}, general={"0-shot": 0.25})
    result = ToxicityResult(
        "realtoxicityprompts", 2, 25, 0.5, [ALL], "expert", "routing group", True, [row], {"scorer": scorer}
    )
    result.save(folder / "toxicity")


def test_a_comparison_says_beside_each_score_that_the_scorer_differs(tmp_path):
    leave_result(tmp_path / "other", TOXIC_BERT)
    leave_result(tmp_path / "same", PERSPECTIVE)
    found = {row.name: row for row in rows.toxic_prompts(tmp_path / "other", "Monet-VD 1.4B")}
    note = "other scorer: unitary/toxic-bert (label 0); paper: the Perspective API"
    assert found["expected maximum toxicity, nothing removed"].note == note
    assert found["toxicity probability, r > 0.1"].note == note
    assert found["eight benchmarks, nothing removed"].note == found["experts removed, r > 0.1"].note == ""
    assert not any(row.note for row in rows.toxic_prompts(tmp_path / "same", "Monet-VD 1.4B"))
    assert not any(row.note for row in rows.toxic_prompts(None, "Monet-VD 1.4B")), "nothing ran yet"
    toxigen = rows.toxigen(tmp_path / "other", "Monet-VD 1.4B")
    assert all("paper: ToxiGen-RoBERTa" in row.note for row in toxigen), "the scorer chooses the experts, too"


def test_the_scorer_stands_above_the_comparison_and_in_its_record(tmp_path, monkeypatch):
    leave_result(tmp_path / "toxic_prompts", TOXIC_BERT)
    monkeypatch.setattr(reproduce, "run_step", lambda step, record: None)
    monkeypatch.setattr(reproduce, "own_name", lambda model: "Monet-VD 1.4B")
    (tmp_path / "prompts.jsonl").write_text("{}")
    request = Request(model="M", out=tmp_path, prompts=[tmp_path / "prompts.jsonl"], scorer=ScorerSettings())
    table = dataclasses.replace(TABLES[4], steps=lambda request, folder: [])
    result = reproduce.reproduce(table, request)
    assert result.provenance["scorer"] == TOXIC_BERT and result.provenance["paper_scorer"] == "the Perspective API"
    assert any("scored by the Perspective API, these by unitary/toxic-bert (label 0)" in one for one in result.cautions)
    page = (tmp_path / "table-4" / "report.md").read_text()
    assert "The scorer differs." in page and "other scorer: unitary/toxic-bert" in page


def test_a_classifier_that_is_not_there_ends_the_run_before_its_first_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "run_step", lambda step, record: pytest.fail("no step runs"))
    (tmp_path / "prompts.jsonl").write_text("{}")
    words = f"reproduce --table 4 --model M --out {tmp_path} --prompts {tmp_path / 'prompts.jsonl'}"
    assert main(shlex.split(words)) == 4
    error = capsys.readouterr().err
    assert "unitary/toxic-bert: no classifier" in error and "--scorer.kind words needs no download" in error
