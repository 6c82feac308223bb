"""The whole command, from a model's folder to a report, with known numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from monet import ExpertMask, MonetForCausalLM
from monet.cli import main
from monet.errors import CheckpointError
from monet.eval.ablation.results import AblationResult
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.controls import Controls
from monet.eval.core.document import Heatmap, Table
from monet.eval.core.estimate import Estimate
from monet.eval.core.store import ExampleStore
from monet.eval.reporting.command import report_of
from monet.eval.sandbox import jail
from monet.eval.suites.code import evaluate
from monet.eval.suites.code.evaluate import evaluate_code
from monet.eval.suites.code.generation import Sampler, Sampling
from monet.eval.suites.code.masks import mask_sizes
from monet.eval.suites.code.problems import CODES, ProblemSet
from monet.eval.suites.code.results import CodeResult
from monet.eval.suites.code.scoring import score, tally
from tests.data.samples import write_corpus
from tests.eval.conftest import config

ROOT = Path(__file__).resolve().parents[4]
WHAT_FOLLOWS = "a comment, so that whatever a model writes there is right"


def planted(path: Path, problems: int = 4) -> Path:
    """Python problems whose body is a comment: every second one passes with any body, the others never pass."""
    rows = [
        {
            "name": f"planted_{number}",
            "language": "py",
            "prompt": f"# {WHAT_FOLLOWS} {number}",
            "tests": f"assert {number % 2} == 1",
            "stop_tokens": ["\n", "\r"],
        }
        for number in range(problems)
    ]
    path.mkdir(parents=True, exist_ok=True)
    (path / "planted.json").write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory, tokenizer) -> Path:
    """A model with its tokenizer, masks of two languages, problems and text."""
    from monet.data.preparation.prepare import prepare

    folder = tmp_path_factory.mktemp("road")
    shards = prepare(str(write_corpus(folder / "corpus")), folder / "data", vocab_size=300,
                     splits={"train": 0.4, "identify": 0.3, "evaluate": 0.3})  # fmt: skip
    torch.manual_seed(0)
    small = MonetForCausalLM(config(vocab_size=300, initializer_range=0.3, max_position_embeddings=128)).eval()
    small.save_pretrained(folder / "model")
    for file in shards.tokenizer_dir.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    for verb in (
        ["stats", "--model", str(folder / "model"), "--data", str(folder / "data"), "--seq_len", "16",
         "--out", str(folder / "statistics.safetensors"), "--progress", "false"],
        ["select", "--statistics", str(folder / "statistics.safetensors"), "--out", str(folder / "masks"),
         "--ratio", "1.2"],
    ):  # fmt: skip
        assert main(verb) == 0
    planted(folder / "problems")
    return folder


def words(road: Path, out: Path, *more: str) -> list[str]:
    return [
        "eval", "code", "--model", str(road / "model"), "--masks", str(road / "masks"), "--out", str(out),
        "--problems", str(road / "problems"), "--languages", "[python]", "--num_samples", "3", "--ks", "[1, 3, 10]",
        "--max_new_tokens", "8", "--batch_size", "2", "--controls.count", "1", "--progress", "false", *more,
    ]  # fmt: skip


def test_folder_to_result(road, tmp_path, capsys, sandbox):
    wide = ["--wall_seconds", "300", "--workers", "2", "--data", str(road / "data"), "--seq_len", "16"]
    assert main(words(road, tmp_path, "--allow_code_execution", *wide)) == 0, capsys.readouterr()
    result = CodeResult.load(tmp_path)
    assert result.executed and CodeResult.from_json(result.to_json()) == result
    assert result.conditions[0].name == "no mask"
    names = [one.name for one in result.conditions]
    assert names == ["no mask", "english", "italian", "python", "random 0 like python"], "controls on their target only"
    assert result.held_out is None and any(
        "no record whether" in getattr(b, "text", "") for b in report_of(result).blocks
    )
    for condition in result.conditions:
        (python,) = condition.scores
        assert (python.problems, python.scored, python.samples) == (4, 4, 12)
        assert python.statuses == {"ok": 6, "failed": 6} and python.unscored == {}
        assert python.pass_at["1"].value == python.pass_at["3"].value == 0.5 and python.pass_at["10"] is None
        if condition.label is not None:
            assert (python.change["3"].value, python.change["3"].low, python.change["3"].high) == (0, 0, 0)
    (verdict,) = result.verdicts
    assert result.judged_k == 3 and (verdict.name, verdict.controls, verdict.p) == ("python", 1, 1.0)
    assert not verdict.passes and "no other language was evaluated" in verdict.reason
    assert result.languages["python"].startswith("Python 3") and result.partial == []
    shut_in = result.provenance["sandbox"]
    assert (shut_in["jail"], shut_in["memory"]) == (sandbox.jail, sandbox.memory)
    assert result.perplexity == AblationResult.load(tmp_path / "perplexity")
    shown = capsys.readouterr().out
    said = "a pass@3 of 50.0 percent by language. Removing a language's experts changes its own by +0.0"
    assert result.sentence in shown and said in result.sentence
    kept = {path.name: path.read_text() for path in (tmp_path / "outcomes").glob("*.jsonl")}
    assert main(words(road, tmp_path, "--allow_code_execution", *wide)) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "outcomes").glob("*.jsonl")} == kept


def test_without_the_flag_nothing_is_run_and_the_result_says_so(road, tmp_path, capsys, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a sandbox was opened")

    monkeypatch.setattr(evaluate, "open_sandbox", forbidden)
    assert main(words(road, tmp_path)) == 0
    result = CodeResult.load(tmp_path)
    assert not result.executed and result.partial == ["no program was executed"]
    assert result.conditions[0].scores[0].pass_at == {"1": None, "3": None, "10": None}
    assert result.conditions[0].scores[0].statuses == {"not executed": 12}
    assert "none was run; add --allow_code_execution" in capsys.readouterr().out
    kept = "".join(path.read_text() for path in (tmp_path / "outcomes").glob("*.jsonl"))
    completions = [json.loads(line) for line in kept.splitlines()]
    assert sum("id" in entry for entry in completions) == 12 * len(result.conditions)
    assert not any(isinstance(block, Heatmap) for block in report_of(result).blocks)


def changes(result: AblationResult) -> list[float]:
    return [number for row in result.delta for one in row for number in (one.value, *one.ends)]


def test_perplexity_alone_needs_neither_problems_nor_runtimes(road, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "read_problems", None)
    monkeypatch.setattr(evaluate, "open_sandbox", None)
    data = ["--perplexity_only", "--data", str(road / "data"), "--seq_len", "16"]
    assert main(words(road, tmp_path, *data)) == 0
    result = CodeResult.load(tmp_path)
    assert result.conditions == [] and result.perplexity is not None and "perplexity_only" in result.partial[0]
    ablation = ["ablate", "--model", str(road / "model"), "--masks", str(road / "masks"), "--controls.count", "1"]
    ablation += ["--data", str(road / "data"), "--seq_len", "16", "--out", str(tmp_path / "b"), "--progress", "false"]
    assert main(ablation) == 0
    assert changes(result.perplexity) == pytest.approx(changes(AblationResult.load(tmp_path / "b")), abs=1e-6)
    blocks = report_of(result).blocks
    assert [block.title for block in blocks if isinstance(block, Table)][-1] == "Perplexity per token"


def test_refusals(road, tmp_path, capsys, monkeypatch):
    def says(text, *more, code=2):
        assert main(words(road, tmp_path, *more)) == code
        assert text in capsys.readouterr().err

    says("perplexity_only needs text by language", "--perplexity_only")
    says("ks must be one or more different numbers", "--ks", "[0]")
    says("workers 0 must be at least 1", "--workers", "0")
    says("limit 0 must be at least 1", "--limit", "0")
    says("'rust' is not among", "--languages", "[rust]")
    says("no such file or folder", "--problems", str(tmp_path / "nothing"))
    monkeypatch.setattr(jail, "version", lambda: None)
    says("bubblewrap (bwrap) is missing", "--allow_code_execution")
    assert not list(tmp_path.glob("result.json"))


def right_and_wrong(bodies, wrong_under):
    """A sampler that writes right bodies, except that a language's own mask makes two of three bodies wrong."""

    def completions(self, mask, asked, advance=lambda _: None):
        hurt = None if mask is None else wrong_under.get(mask.provenance.get("label"))
        found = {}
        for number, problem in enumerate(asked):
            body = bodies[problem.language][problem.name]
            bad = problem.language == hurt and number > 0
            found[problem.name] = [problem.completion(body["wrong" if bad else "right"])[0]] * 4
        return found

    return completions


def test_known_deltas(model, tokenizer, problems, bodies, tmp_path, sandbox, libraries, monkeypatch):
    chosen = ProblemSet({name: problems.problems[name] for name in ("python", "javascript")}, {}, {}, "here")
    removed = {0: [1, 2, 3], 1: [4]}
    masks = {
        label: ExpertMask.from_removed(model.config, removed, {"label": label}) for label in ("Python", "js", "english")
    }
    monkeypatch.setattr(Sampler, "completions", right_and_wrong(bodies, {"Python": "python", "js": "javascript"}))
    result = evaluate_code(
        model, tokenizer, masks, chosen, out=tmp_path, sandbox=sandbox, libraries=[libraries],
        sampling=Sampling(4, max_new_tokens=8), ks=[1, 4], controls=Controls(2), progress=False,
    )  # fmt: skip
    if "javascript" in result.unavailable:
        pytest.skip(result.unavailable["javascript"])
    found = {(one.name, score.language): score for one in result.conditions for score in one.scores}
    assert found["no mask", "python"].pass_at["4"].value == 1
    assert found["Python", "python"].pass_at["4"].value == pytest.approx(1 / 3)
    change = found["Python", "python"].change["1"]
    assert change.value == pytest.approx(-2 / 3) and -1 <= change.low <= change.value <= change.high <= 0
    assert change.low < change.high
    assert found["Python", "javascript"].change["1"].value == 0
    assert found["js", "javascript"].change["4"].value == pytest.approx(-2 / 3)
    found = {one.name: one for one in result.verdicts}
    assert found.keys() == {"Python", "js"}, "english is no programming language"
    python = found["Python"]
    assert python.others_mean.value == 0 == python.others_max and python.others_max_name == "javascript"
    assert python.random_per_control == [0, 0] and python.random == Estimate(0, 0, 0)
    assert (python.controls, python.p, python.q) == (2, 1 / 3, 1 / 3) and not python.passes
    assert "within the interval of random masks: p 0.333" in python.reason
    assert {one.name for one in result.conditions if one.control is not None} == {
        f"random {number} like {label}" for number in (0, 1) for label in ("Python", "js")
    }
    assert result.sentence.startswith("The unmasked model has a pass@4 of 100.0 percent by language. ")
    assert "its own by -66.7, the other languages' mean by +0.0, random controls by" in result.sentence
    assert "0 of 2 masks lower their own language most" in result.sentence
    verdicts = next(block for block in report_of(result).blocks if block.title.startswith("Verdicts"))
    assert verdicts.rows[0][1].startswith("-66.7 [") and verdicts.rows[0][5:8] == ["2", "0.333", "0.333"]
    table = next(block for block in report_of(result).blocks if block.title == "Experts removed, by routing group")
    assert table.header == ["language", "group 0", "group 1", "all", "share"]
    assert table.rows[0] == ["Python", "3", "1", "4", "8.00%"]
    matrix = next(block for block in report_of(result).blocks if isinstance(block, Heatmap))
    assert matrix.rows == ["Python", "js", "english"] and matrix.columns == ["python", "javascript"]
    assert matrix.values[0] == pytest.approx([-200 / 3, 0]) and matrix.values[2] == [0, 0]


def test_missing_runtimes_are_no_failures(model, tokenizer, problems, bodies, tmp_path, sandbox, monkeypatch):
    from monet.eval.sandbox import runtimes

    monkeypatch.setattr(runtimes, "find_command", lambda *names: None)
    monkeypatch.setattr(Sampler, "completions", right_and_wrong(bodies, {}))
    result = evaluate_code(
        model, tokenizer, {}, problems, out=tmp_path, sandbox=sandbox, sampling=Sampling(2, max_new_tokens=8),
        ks=[1], progress=False,
    )  # fmt: skip
    assert [score.language for score in result.conditions[0].scores] == ["python"]
    assert result.conditions[0].scores[0].pass_at["1"].value == 1
    assert result.unavailable.keys() == CODES.keys() - {"python"} and len(result.partial) == 5
    assert all("on the search path" in reason for reason in result.unavailable.values())
    assert "Partial: " in result.sentence and "pass@1: python 100.0%" in result.sentence
    table = next(block for block in report_of(result).blocks if block.title == "Languages and runtimes")
    assert len(table.rows) == 6


def test_samples_without_an_outcome_are_in_no_denominator(problems):
    asked = problems.problems["python"]
    completions = {asked[0].name: ["a", "b", "c"], asked[1].name: ["a"]}
    statuses = {asked[0].program(text): end for text, end in zip("abc", ["ok", "sandbox error", "failed"], strict=True)}
    statuses[asked[1].program("a")] = "sandbox error"
    found = tally(asked, completions, statuses)
    assert found.passes == {asked[0].name: (2, 1)}
    assert found.unscored == {
        "problems: prompt and max_new_tokens exceed the model's context": 1,
        "samples: could not be run": 2,
    }
    scored = score("python", {"no mask": found}, [1, 2, 3], Bootstrap(), 0).row("no mask", Bootstrap())
    assert (scored.problems, scored.scored, scored.samples) == (3, 1, 2)
    assert scored.pass_at["1"].value == 0.5 and scored.pass_at["1"].low is None
    assert scored.pass_at["2"].value == 1 and scored.pass_at["3"] is None
    assert tally(asked, completions, None).unscored["samples: not executed"] == 4


def test_changes_are_paired_by_problem(problems):
    asked = problems.problems["python"]
    names = [problem.name for problem in asked]
    whole = tally(asked, {name: ["x"] for name in names}, {p.program("x"): "ok" for p in asked})
    some = tally(asked, {name: ["x"] for name in names[1:]}, {p.program("x"): "failed" for p in asked})
    found = score("python", {"no mask": whole, "a": some}, [1], Bootstrap(), 0).row("a", Bootstrap())
    assert found.pass_at["1"].value == 0 and found.change["1"].value == -1 and found.scored == 2


def test_damaged_results_and_foreign_masks(model, tokenizer, problems, tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(CheckpointError, match="format None"):
        CodeResult.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        CodeResult.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"damaged monet-code/2: .*executed"):
        CodeResult.from_json({"format": "monet-code/2"})
    other = ExpertMask.random(config(moe_experts=6), 3, seed=0)
    with pytest.raises(CheckpointError, match="mask for 'python'"):
        evaluate_code(model, tokenizer, {"python": other}, problems, out=tmp_path, progress=False)
    assert mask_sizes({"a": ExpertMask.keep_all(model.config)})[0].removed == 0


@pytest.mark.nightly  # tests/eval/test_commands.py and the suite of questions kill runs that use the same store
def test_kill_9_and_the_same_command_give_the_same_numbers(road, tmp_path, sandbox):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = []
    for name in ("whole", "killed"):
        out = tmp_path / name
        more = ["--allow_code_execution", "--wall_seconds", "300", "--num_samples", "8", "--workers", "2"]
        command = words(road, out, *more)
        if name == "killed":
            process = subprocess.Popen([sys.executable, "-m", "monet", *command], cwd=ROOT, env=environment)
            deadline = time.monotonic() + 400
            while time.monotonic() < deadline and lines(out) < 60:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert lines(out) >= 60 and not (out / "result.json").exists()
        assert main(command) == 0
        content = CodeResult.load(out).to_json()
        del content["provenance"]["date"]
        results.append(content)
    assert results[0] == results[1]


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (out / "outcomes").glob("*.jsonl"))


@pytest.mark.nightly  # the suites of questions have parts too
def test_parts_gather_to_the_whole(road, tmp_path, capsys, sandbox, monkeypatch):
    wide = ["--allow_code_execution", "--wall_seconds", "300", "--data", str(road / "data"), "--seq_len", "16"]
    assert main(words(road, tmp_path / "whole", *wide)) == 0, capsys.readouterr()
    for index in range(3):
        assert main([*words(road, tmp_path / "parts", *wide), "--part", f"{index}/3"]) == 0
    assert "run the same command without --part" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "result.json").exists()
    monkeypatch.setattr(ExampleStore, "put", lambda *_: pytest.fail("something was done again"))
    assert main(words(road, tmp_path / "parts", *wide)) == 0
    whole, gathered = (CodeResult.load(tmp_path / name) for name in ("whole", "parts"))
    assert gathered.conditions == whole.conditions
    assert gathered.perplexity is not None and gathered.perplexity.domains == whole.perplexity.domains


@pytest.mark.parametrize("masks", [1, 4])
def test_kept_outcomes_are_opened_once_a_language(
    model, tokenizer, problems, bodies, tmp_path, sandbox, monkeypatch, masks
):
    opened, enter = [], ExampleStore.__enter__
    monkeypatch.setattr(ExampleStore, "__enter__", lambda store: opened.append(store.key) or enter(store))
    monkeypatch.setattr(Sampler, "completions", right_and_wrong(bodies, {}))
    evaluate_code(
        model, tokenizer, {str(n): ExpertMask.from_removed(model.config, {0: [n]}) for n in range(masks)},
        ProblemSet({"python": problems.problems["python"]}, {}, {}, "here"), out=tmp_path, sandbox=sandbox,
        sampling=Sampling(2, max_new_tokens=8), ks=[1], controls=Controls(1), progress=False,
    )  # fmt: skip
    assert [key["suite"] for key in opened] == ["code-outcomes/1"]
