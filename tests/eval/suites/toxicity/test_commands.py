"""The commands as a user runs them: prompts in the published schema, a model with its tokenizer, any scorer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from monet import MonetForCausalLM
from monet.cli import main
from monet.data.preparation.prepare import prepare
from monet.eval.attribution.selection import save_masks
from monet.eval.reporting.command import report_of
from monet.eval.suites.toxicity import evaluate, write_scores
from monet.eval.suites.toxicity.results import ALL, ToxicityResult
from monet.masks.expert_mask import ExpertMask
from tests.data.samples import SENTENCES, write_corpus
from tests.eval.conftest import config
from tests.eval.scorers.test_perspective import SECRET, service  # noqa: F401 - a fixture
from tests.eval.suites.toxicity.conftest import real_row, write_lines

ROOT = Path(__file__).resolve().parents[4]
VERBS = {"toxicity": evaluate.run, "toxicity-scores": write_scores.run}


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """Prepared text, a model with its tokenizer, two masks of it, and prompts with the keys of the real data set."""
    folder = tmp_path_factory.mktemp("road")
    corpus = write_corpus(folder / "corpus")
    shards = prepare(str(corpus), folder / "data", vocab_size=300, splits={"train": 0.6, "evaluate": 0.4})
    torch.manual_seed(0)
    model = MonetForCausalLM(config(vocab_size=300, initializer_range=0.3))
    model.save_pretrained(folder / "model")
    for file in shards.tokenizer_dir.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    masks = {f"r > {r}": ExpertMask.random(model.config, n, seed=0) for r, n in ((0.2, 3), (0.1, 9))}
    save_masks(folder / "masks", masks, {"labels": {name: {} for name in masks}})
    words = SENTENCES["english"].split()
    rows = [
        real_row(i, " ".join(words[i % 5 : i % 5 + 2]) + f" {i}", i / 24, challenging=i % 2 == 0) for i in range(24)
    ]
    write_lines(folder / "prompts.jsonl", rows)
    return folder


def words(road: Path, out: Path, *more: str) -> list[str]:
    given = {
        "model": road / "model", "prompts": [str(road / "prompts.jsonl")], "masks": road / "masks", "out": out,
        "samples": 3, "new_tokens": 4, "batch_size": 6, "progress": "false", "device": "cpu", "controls.count": 1,
    }  # fmt: skip
    return ["eval", "toxicity", *(f"--{name}={value}" for name, value in given.items()), *more]


def without_date(out: Path) -> dict:
    content = ToxicityResult.load(out).to_json()
    del content["provenance"]["date"]
    return content


def test_from_prompts_to_a_report(road, tmp_path, capsys):
    assert main(words(road, tmp_path, f"--text={road / 'data'}", "--seq_len=16")) == 0
    shown = capsys.readouterr()
    result = ToxicityResult.load(tmp_path)
    assert result.sentence in shown.out and "monet report --result" in shown.out
    assert [row.name for row in result.rows] == ["no mask", "r > 0.2", "random 0 like r > 0.2", "r > 0.1",
                                                 "random 0 like r > 0.1"]  # fmt: skip
    assert result.asked == 12 and result.groups == ["non-toxic", "toxic"] and not result.partial
    assert result.rows[0].perplexity > 1 and result.provenance["scorer"]["kind"] == "words"
    assert result.provenance["prompts"]["subset"] == "evaluate"
    report = report_of(result)
    assert report.title == "Toxicity: RealToxicityPrompts" and report.summary == result.sentence
    json.dumps(report.numbers, allow_nan=False)
    tables = [block for block in report.blocks if type(block).__name__ == "Table"]
    assert len(tables) == 5 and all(len(row) == len(table.header) for table in tables for row in table.rows)
    outcomes = [line for file in (tmp_path / "outcomes").glob("*.jsonl") for line in file.read_text().splitlines()[1:]]
    written = {text for line in outcomes for text in json.loads(line)["outcome"] if len(text) > 8}
    assert written  # and stays there
    for file in (tmp_path / "result.json", *(tmp_path / "scores").glob("*.jsonl")):
        assert not any(text in file.read_text() for text in written)


def test_toxigen_is_greedy_and_has_groups_by_file(road, tmp_path):
    for label in ("hate", "neutral"):
        lines = [f"- the river {i}\\n- the {label} bridge\\n-" for i in range(6)]
        (tmp_path / f"{label}_rivers_1k.txt").write_text("\n".join(lines))
    files = sorted(str(path) for path in tmp_path.glob("*_1k.txt"))
    out = tmp_path / "out"
    command = words(road, out, f"--prompts={json.dumps(files)}", "--protocol=toxigen", "--subset=all", "--limit=8")
    command = [word for word in command if not word.startswith(("--samples", "--new_tokens"))]
    assert main([*command, "--new_tokens=2"]) == 0
    result = ToxicityResult.load(out)
    assert result.groups == ["hate", "neutral"] and result.samples == 1 and result.asked == 8
    assert result.provenance["decoding"]["temperature"] == 0 and "mean toxicity" in result.sentence
    assert not result.partial


def test_a_service_that_fails_and_heals(road, tmp_path, capsys, service, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    api = ["--scorer.kind=perspective", f"--scorer.url={service.url}", "--scorer.requests_per_second=500",
           "--scorer.attempts=1"]  # fmt: skip
    assert main(words(road, tmp_path / "whole", *api)) == 0
    texts = [text for _, text, *_ in service.requests if "weather" not in text]
    service.script = {text: [{"nothing": 1}] for text in texts[:5]} | {texts[5]: [b"<html>"]}
    assert main(words(road, tmp_path / "run", *api)) == 0
    partial = ToxicityResult.load(tmp_path / "run")
    assert partial.partial and set(partial.missing) <= {"scorer: no score", "scorer: nonsense"}
    assert sum(partial.provenance["texts_without_score"].values()) == 6
    assert "PARTIAL" in capsys.readouterr().out
    assert all(row.cells[ALL].prompts + sum(row.cells[ALL].missing.values()) == 12 for row in partial.rows)
    service.requests.clear()
    assert main(words(road, tmp_path / "run", *api)) == 0
    assert sorted(text for _, text, *_ in service.requests if "weather" not in text) == sorted(texts[:6])
    assert without_date(tmp_path / "run") == without_date(tmp_path / "whole")
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


def test_scores_are_shared_between_runs(road, tmp_path, service, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    api = ["--scorer.kind=perspective", f"--scorer.url={service.url}", "--scorer.requests_per_second=500",
           f"--kept_scores={tmp_path / 'kept'}"]  # fmt: skip
    assert main(words(road, tmp_path / "a", *api)) == 0
    service.requests.clear()
    assert main(words(road, tmp_path / "b", *api)) == 0
    assert [text for _, text, *_ in service.requests] == ["The weather is fine today."]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--scorer.kind=perspective"], 2, "PERSPECTIVE_API_KEY"),
        (["--scorer.kind=classifier"], 2, "needs scorer.model"),
        (["--scorer.kind=classifier", "--scorer.model=absent"], 4, "no classifier"),
        (["--samples=0"], 2, "samples 0"),
        (["--limit=1"], 3, "at least two prompts"),
        (["--masks=absent"], 4, "monet select"),
        (["--prompts=[absent.jsonl]"], 3, "no such file of prompts"),
        (["--general=[absent.json]"], 4, "monet eval general"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(road, tmp_path, capsys, monkeypatch, more, code, message):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    assert main(words(road, tmp_path, *more)) == code
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("monet: error: ")


def test_a_model_without_tokenizer(road, tmp_path, capsys):
    MonetForCausalLM.from_pretrained(road / "model").save_pretrained(tmp_path / "bare")
    assert main(words(road, tmp_path / "out", f"--model={tmp_path / 'bare'}")) == 4
    assert "no tokenizer in this folder" in capsys.readouterr().err


def test_scored_text_for_the_purge(road, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    command = ["eval", "toxicity-scores", f"--prompts=[{road / 'prompts.jsonl'}]", f"--out={out}"]
    assert main(command) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 24 and all(set(line) == {"id", "text", "score", "prompt_hash"} for line in lines)
    assert len({line["id"] for line in lines}) == 24
    assert lines[0]["score"] == pytest.approx(1 / 24) and lines[1] == {
        "id": "prompts:2:continuation", "text": " bread", "score": 0.25, "prompt_hash": lines[0]["prompt_hash"],
    }  # fmt: skip
    about = json.loads(out.with_suffix(".about.json").read_text())
    assert about["texts"] == 24 and not about["partial"] and about["source"] == "given"
    assert "24 texts, 6 of them with a score above 0.5" in capsys.readouterr().out
    evaluated = tmp_path / "evaluated.jsonl"
    write_lines(evaluated, [json.loads(line) for line in (road / "prompts.jsonl").read_text().splitlines()[:10]])
    more = [f"--exclude=[{evaluated}]", "--subset=all", "--texts=prompt", "--source=scorer"]
    assert main([*command, *more]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 14 and all(line["id"].endswith(":prompt") for line in lines)
    assert "10 left out (excluded)" in capsys.readouterr().out
    assert json.loads(out.with_suffix(".about.json").read_text())["scorer"]["kind"] == "words"


def test_scored_text_is_never_made_up(road, tmp_path, capsys, service, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    service.script = {" bread": [{"none": 0}]}
    out = tmp_path / "scores.jsonl"
    command = ["eval", "toxicity-scores", f"--prompts=[{road / 'prompts.jsonl'}]", f"--out={out}", "--source=scorer",
               "--scorer.kind=perspective", f"--scorer.url={service.url}",
               "--scorer.requests_per_second=500"]  # fmt: skip
    assert main(command) == 0
    assert len(out.read_text().splitlines()) == 12 and "PARTIAL" in capsys.readouterr().out
    assert main(command) == 0
    assert len(out.read_text().splitlines()) == 24 and "PARTIAL" not in capsys.readouterr().out
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"line {i}" for i in range(9)))
    assert main(["eval", "toxicity-scores", f"--prompts=[{lines}]", f"--out={out}"]) == 3
    assert "let a scorer score them" in capsys.readouterr().err


@pytest.mark.nightly  # tests/eval/test_commands.py and the suite of questions kill runs that use the same store
def test_kill_9_and_the_same_command_give_the_same_numbers(road, tmp_path):
    for name in ("whole", "killed"):
        command = words(road, tmp_path / name, "--subset=all", "--controls.count=3")
        if name == "killed":
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen([sys.executable, "-m", "monet", *command], cwd=ROOT, env=environment)
            deadline = time.monotonic() + 120
            while len(list((tmp_path / name / "outcomes").glob("*.jsonl"))) < 3 and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (tmp_path / name / "result.json").exists()
            assert 3 <= len(list((tmp_path / name / "outcomes").glob("*.jsonl"))) < 9
        assert main(command) == 0
    assert without_date(tmp_path / "killed") == without_date(tmp_path / "whole")


def test_from_scored_text_to_purged_continuations(road, tmp_path, capsys):
    """The four commands in sequence: scores, statistics, masks at nested thresholds, toxicity under them."""
    scores, statistics, masks = (tmp_path / name for name in ("scores.jsonl", "statistics.safetensors", "masks"))
    prompts, model = f"--prompts=[{road / 'prompts.jsonl'}]", f"--model={road / 'model'}"
    assert main(["eval", "toxicity-scores", prompts, f"--out={scores}", "--texts=prompt"]) == 0
    assert main(["stats", model, f"--scores={scores}", f"--out={statistics}", "--progress=false"]) == 0
    select = ["select", f"--statistics={statistics}", f"--out={masks}", "--rule=pearson"]
    assert main([*select, "--threshold=[0.1, 0.0, 0.99]"]) == 0
    assert main(words(road, tmp_path / "out", f"--masks={masks}")) == 0
    result = ToxicityResult.load(tmp_path / "out")
    assert [row.control for row in result.rows] == [None, None, 0, None, 0]
    low, high = result.rows[3].removed, result.rows[1].removed
    assert 0 < high < low
    assert result.provenance["masks_that_remove_nothing"] == ["score 0.99"]
    how = next(block for block in report_of(result).blocks if block.title == "What was measured")
    assert "change nothing: score 0.99." in how.text
    assert result.held_out is True, "scores come from the other half of the prompts"
    capsys.readouterr()
    assert main(["report", f"--result={tmp_path / 'out'}", f"--out={tmp_path / 'report'}"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Toxicity: RealToxicityPrompts" in page and result.rows[1].name in page
    mass = ["--controls.kind=mass", f"--controls.statistics={statistics}", "--controls.count=2"]
    assert main(words(road, tmp_path / "mass", f"--masks={masks}", *mass)) == 0
    result = ToxicityResult.load(tmp_path / "mass")
    assert (
        result.provenance["controls"]["kind"] == "mass" and result.rows[1].cells[ALL].expected_max_chance.controls == 2
    )
    assert "Random experts of equal mass are removed" in str(report_of(result).blocks)


def test_a_purge_on_the_prompts_it_was_chosen_on_is_told(road, tmp_path):
    scores, statistics, masks = (tmp_path / name for name in ("scores.jsonl", "statistics.safetensors", "masks"))
    prompts, model = f"--prompts=[{road / 'prompts.jsonl'}]", f"--model={road / 'model'}"
    assert main(["eval", "toxicity-scores", prompts, f"--out={scores}", "--texts=continuation", "--subset=all"]) == 0
    # Here no token changes the score of a continuation, so the first texts get other scores.
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    write_lines(scores, [{**line, "score": number / 24} for number, line in enumerate(lines)])
    assert main(["stats", model, f"--scores={scores}", f"--out={statistics}", "--progress=false"]) == 0
    select = ["select", f"--statistics={statistics}", f"--out={masks}", "--rule=pearson", "--threshold=-0.9"]
    assert main(select) == 0
    assert main(words(road, tmp_path / "out", f"--masks={masks}")) == 0
    assert ToxicityResult.load(tmp_path / "out").held_out is False
