"""`monet explain` and `monet score`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monet.cli import main
from tests.eval.explain.conftest import PLANTED

EXPERTS = ",".join(f"0:{number}" for number in PLANTED)


@pytest.fixture
def folders(planted, planted_model, tmp_path):
    planted_model.save_pretrained(tmp_path / "model")
    return str(planted.folder), str(tmp_path / "model")


def run(capsys, *words) -> str:
    code = main([*words, "--progress", "false"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_from_index_to_scores(folders, capsys):
    index, model = folders
    shown = run(capsys, "explain", index, "--experts", EXPERTS)
    assert "3 of 3 units explained" in shown
    shown = run(capsys, "score", index, "--model", model, "--explanations", "tokens", "--around", "2")
    assert "tokens-detection: score 1.000" in shown and "permuted" in shown and "empty 0.500" in shown
    content = json.loads(Path(index, "scores", "tokens-detection.result.json").read_text())
    assert content["units"] == 3 and content["provenance"]["settings"]["positives"] == 8
    shown = run(capsys, "score", index, "--model", model, "--scorer", "intruder", "--experts", EXPERTS)
    assert "chance 0.20" in shown


def test_experts_by_a_column(folders, capsys):
    index, _ = folders
    shown = run(capsys, "explain", index, "--most", "2", "--by", "count", "--explainer", "label")
    assert "2 of 2 units explained" in shown
    lines = [json.loads(line) for line in Path(index, "explanations", "label.jsonl").read_text().splitlines()]
    assert all(line["unit"] in PLANTED and line["explanation"].startswith("label: ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "I"], "give one of the two"),
        (["explain", "I", "--most", "3", "--experts", "0:17"], "give one of the two"),
        (["explain", "I", "--most", "3", "--min_count", "100000"], "lower --min_count"),
        (["explain", "I", "--experts", "0:17", "--name", "../x"], "name '../x'"),
        (["explain", "I", "--experts", "0:17", "--contexts", "0"], "contexts 0"),
        (["score", "I"], "needs --explanations"),
        (["score", "I", "--explanations", "none"], "does not exist"),
        (["score", "I", "--explanations", "none", "--scorer", "intruder"], "leave --explanations out"),
    ],
)
def test_bad_options_are_refused(folders, capsys, words, message):
    index, model = folders
    words = [index if word == "I" else word for word in words]
    assert main([*words, *(["--model", model] if words[0] == "score" else [])]) == 2
    assert message in capsys.readouterr().err
