"""`monet eval general` from data in real schemas to a result and a report, with the same numbers after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from monet.cli import main
from monet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from monet.eval.attribution.selection import load_masks, save_masks
from monet.eval.choices.scoring import tokenizer_of
from monet.eval.choices.texts import ORIGIN
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import p_value
from monet.eval.core.conditions import Condition
from monet.eval.core.controls import Controls
from monet.eval.core.document import Table, Text
from monet.eval.suites.questions import domains
from monet.eval.suites.questions.catalog import benchmarks
from monet.eval.suites.questions.general import evaluate_general
from monet.eval.suites.questions.general_result import GeneralResult
from monet.eval.suites.questions.scoring import Scorer, correct
from monet.eval.suites.questions.tasks import SOLVED, load_tasks
from monet.masks.expert_mask import ExpertMask
from monet.parts import Part
from tests.eval.suites.questions.samples import labelled_rows, write_jsonl, write_mmlu

ROOT = Path(__file__).resolve().parents[4]
QUICK = {"progress": False, "batch_size": 4, "bootstrap": Bootstrap(resamples=1000), "controls": Controls(1)}


def without_date(result: GeneralResult) -> dict:
    content = result.to_json()
    del content["provenance"]["date"]
    return content


@pytest.fixture
def masks_folder(model, mask, tmp_path) -> Path:
    entry = {"experts": mask.num_removed}
    save_masks(tmp_path / "masks", {"some": mask}, {"labels": {"some": entry}})
    return tmp_path / "masks"


def test_folder_to_report(model_folder, masks_folder, data, tmp_path, capsys):
    words = ["--model", str(model_folder), "--masks", str(masks_folder), "--local_data", str(data)]
    words += ["--out", str(tmp_path / "out"), "--shots", "[0, 2]", "--batch_size", "8", "--resamples", "1000"]
    words += ["--controls.count", "1"]
    assert main(["eval", "general", *words, "--progress", "false"]) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    result = GeneralResult.load(tmp_path / "out")
    assert result.sentence in shown and "0-shot MMLU: 114 of 114 questions scored; 114 rows" in shown
    names = ["MMLU", "ARC", "WinoGrande", "PIQA", "SIQA", "OBQA", "HellaSwag", "CSQA"]
    assert [row.condition for row in result.rows] == ["no mask", "some", "random 0 like some"] * 2
    assert [row.condition for row in result.random] == ["random like some"] * 2
    assert all(list(row.cells) == names for row in result.rows)
    assert [row.removed for row in result.rows] == [0, 24, 24] * 2 and result.unit == "expert"
    assert [row.controls for row in result.rows] == [None, 1, None] * 2
    assert not result.partial
    for row in [*result.rows, *result.random]:
        assert row.average.value == pytest.approx(np.mean([cell.score.value for cell in row.cells.values()]))
        assert row.average.low <= row.average.value <= row.average.high
        assert row.average_delta.low <= row.average_delta.value <= row.average_delta.high
    first = result.rows[0]
    assert all(cell.delta.value == cell.delta.low == cell.delta.high == 0 for cell in first.cells.values())
    assert any(cell.delta.value != 0 for cell in result.rows[1].cells.values())
    report = result.report()
    tables = [block for block in report.blocks if isinstance(block, Table)]
    assert [len(table.rows) for table in tables] == [3, 2, 3, 2, 16]
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    assert tables[0].header == ["", *names, "average"]
    assert GeneralResult.from_json(report.numbers) == result


def test_numbers_are_counted_from_the_outcomes(model, mask, data, tmp_path):
    """ARC is the mean of its parts, MMLU counts questions equally, acc_norm counts if a task has it."""
    result = evaluate_general(
        model,
        {"some": mask},
        out=tmp_path,
        data=data,
        names=["MMLU", "ARC", "SIQA"],
        shots=[0],
        **{**QUICK, "controls": Controls(0)},
    )
    assert result.rows[1].p is None and not result.random
    scorer = Scorer(model, tokenizer_of(model, None), tmp_path / "other", batch_size=4)
    for row, condition in zip(result.rows, [Condition("no mask"), Condition("some", mask)], strict=True):
        for benchmark in benchmarks("cloze", ["MMLU", "ARC", "SIQA"]):
            tasks, _ = load_tasks(benchmark.tasks, 0, data=data)
            right = [correct(t.questions, scorer.outcomes(t.questions, condition), True) for t in tasks]
            wanted = (
                np.mean([part.mean() for part in right]) if benchmark.name == "ARC" else np.concatenate(right).mean()
            )
            assert row.cells[benchmark.name].score.value == pytest.approx(wanted)
    plain = evaluate_general(
        model, {}, out=tmp_path / "acc", data=data, names=["SIQA"], shots=[0], metric="acc", style="letters", **QUICK
    )
    assert plain.rows[0].cells["SIQA"].score.value == plain.rows[0].cells["SIQA"].acc
    assert plain.rows[0].cells["SIQA"].acc == result.rows[0].cells["SIQA"].acc


def test_a_mask_is_read_beside_its_controls(model, mask, data, tmp_path):
    options = {"data": data, "names": ["ARC", "PIQA"], "shots": [0], **QUICK, "controls": Controls(3)}
    result = evaluate_general(model, {"some": mask}, out=tmp_path, **options)
    (whole, own, *controls), (random,) = result.rows, result.random
    assert [control.control for control in controls] == [0, 1, 2]
    assert random.average_delta.value == pytest.approx(np.mean([one.average_delta.value for one in controls]))
    assert random.average_delta.low <= min(one.average_delta.value for one in controls)
    of_arc = [one.cells["ARC"].delta.value for one in controls]
    assert random.cells["ARC"].delta.value == pytest.approx(np.mean(of_arc))
    lost, *by_chance = (round(whole.average.value - one.average.value, 9) for one in (own, *controls))
    assert own.p == own.q == p_value(lost, by_chance) and own.controls == 3
    table = [block for block in result.report().blocks if isinstance(block, Table)][1]
    assert [row[0] for row in table.rows] == ["some", "random like some"]
    assert table.rows[0][-3:] == ["3", f"{own.p:.3g}", f"{own.q:.3g}"]


def test_a_stop_in_mid_pass_changes_nothing(model, mask, data, tmp_path, monkeypatch):
    def run(folder):
        return evaluate_general(
            model, {"some": mask}, out=tmp_path / folder, data=data, names=["ARC", "PIQA"], shots=[0, 1], **QUICK
        )

    whole = run("whole")
    original, calls = Scorer.score, []

    def stops(self, questions):
        calls.append(len(questions))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, questions)

    monkeypatch.setattr(Scorer, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    assert not (tmp_path / "stopped" / "result.json").exists()
    resumed = run("stopped")
    total = len(calls)
    assert without_date(resumed) == without_date(whole)
    assert without_date(run("stopped")) == without_date(whole) and len(calls) == total, "all outcomes were kept"
    monkeypatch.setattr(Scorer, "score", original)


def test_half_a_block_is_scored_again_as_a_whole(model, data, tmp_path):
    """Batches hold the same questions after a kill, so log-likelihoods are bitwise equal."""
    (task,), _ = load_tasks([benchmarks("cloze", ["PIQA"])[0].tasks[0]], 0, data=data)
    scorer = Scorer(model, tokenizer_of(model, None), tmp_path, batch_size=2)
    whole = scorer.outcomes(task.questions, Condition("no mask"))
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert scorer.outcomes(task.questions, Condition("no mask")) == whole
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.nightly  # tests/eval/test_commands.py kills a run that uses the same store
def test_kill_9_and_the_same_command_give_the_same_numbers(model_folder, masks_folder, data, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    results = []
    for name in ("whole", "killed"):
        words = ["--model", str(model_folder), "--masks", str(masks_folder), "--local_data", str(data)]
        words += [
            "--out",
            str(tmp_path / name),
            "--shots",
            "[0]",
            "--controls.count",
            "1",
            "--batch_size",
            "1",
            "--progress",
            "false",
        ]
        command = ["eval", "general", *words]
        if name == "killed":
            process = subprocess.Popen([sys.executable, "-m", "monet", *command], cwd=ROOT, env=environment)
            deadline = time.monotonic() + 300
            while len(list((tmp_path / name).glob("outcomes/*.jsonl"))) < 20 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (tmp_path / name / "result.json").exists()
        assert main(command) == 0
        results.append(GeneralResult.load(tmp_path / name))
    assert without_date(results[0]) == without_date(results[1])


@pytest.mark.parametrize(("policy", "scored"), [("cut", 8), ("skip", 0)])
def test_prompts_longer_than_the_context(policy, scored, model, data, tmp_path):
    """Seven examples make every prompt longer than 60 tokens."""
    model.config.max_position_embeddings = 60
    options = {"names": ["OBQA", "HellaSwag"], "out": tmp_path, "data": data, "too_long": policy, **QUICK}
    if policy == "skip":
        with pytest.raises(DataError, match=r"OBQA: 0 of 8 questions have a score.*--too_long cut"):
            evaluate_general(model, {}, shots=[7], **options)
        return
    result = evaluate_general(model, {}, shots=[0, 7], **options)
    short, long = result.denominators["0"][1], result.denominators["7"][1]
    assert (short.cut, long.cut, long.scored) == (0, 8, scored) and not result.partial
    assert "8 with a cut prompt" in result.counts


def test_some_questions_too_long_are_left_out_and_told(model, tmp_path):
    rows = labelled_rows("long", 6)
    rows[2]["question"] = "river " * 200
    write_jsonl(tmp_path / "data" / "arc_easy" / "test.jsonl", rows)
    write_jsonl(tmp_path / "data" / "arc_challenge" / "test.jsonl", labelled_rows("other", 6))
    result = evaluate_general(
        model, {}, out=tmp_path, data=tmp_path / "data", names=["ARC"], shots=[0], too_long="skip", **QUICK
    )
    (told,) = result.denominators["0"]
    assert (told.asked, told.scored, told.unscored) == (12, 11, {"longer than the context": 1})
    assert result.partial and "(partial" in result.sentence
    assert "ARC: 11 of 12 questions scored; 12 rows, left out: 1 longer than the context" in result.counts
    table = result.report().blocks[-2]
    assert "1 longer than the context" in table.rows[0]


def test_a_question_solved_in_its_own_prompt_is_in_no_denominator(model, tmp_path):
    rows = labelled_rows("t", 6)
    folder = tmp_path / "data" / "openbookqa"
    rows = [{**row, "question_stem": row["question"]} for row in rows]
    write_jsonl(folder / "test.jsonl", rows)
    write_jsonl(folder / "train.jsonl", [{**rows[3], "id": "another"}])
    options = {"out": tmp_path, "data": tmp_path / "data", "names": ["OBQA"], "shots": [0, 1], **QUICK}
    result = evaluate_general(model, {}, **options)
    (whole,), (told,) = result.denominators["0"], result.denominators["1"]
    assert (whole.asked, told.asked, told.scored, told.unaskable) == (6, 5, 5, {SOLVED: 1})
    assert "5 of 5 questions scored; 6 rows, left out: 1 a question solved in its own prompt" in result.counts
    assert result.partial


def test_masks_chosen_on_the_questions_are_told(model, mask, data, tmp_path):
    """Masks of `monet eval domains` record the questions that they were chosen on; a random mask does not."""
    mmlu = write_mmlu(tmp_path / "data", subjects=["international_law", "prehistory"], questions=3)
    domains.evaluate_domains(model, out=tmp_path / "domains", data=mmlu, identify_on="same", ratio=1.02, **QUICK)
    chosen = {"some": load_masks(tmp_path / "domains" / "masks")["law"]}

    def told(masks, data, name):
        options = {"names": [name], "shots": [0], **{**QUICK, "controls": Controls(0)}}
        result = evaluate_general(model, masks, data=data, out=tmp_path, **options)
        texts = [block for block in result.report().blocks if isinstance(block, Text) and block.text in ORIGIN.values()]
        return result.provenance["held_out"], texts[0].caution if texts else None

    assert told(chosen, mmlu, "MMLU") == (False, True)
    assert told(chosen, data, "PIQA") == (True, False)
    assert told({"some": mask}, data, "PIQA") == (None, True)
    assert told({}, data, "PIQA") == (None, None), "no mask, no word about its origin"


def test_half_of_a_benchmark_is_partial(model, tmp_path):
    write_jsonl(tmp_path / "data" / "arc_easy" / "test.jsonl", labelled_rows("a", 6))
    options = {"out": tmp_path, "data": tmp_path / "data", "names": ["ARC"], "shots": [0], **QUICK}
    result = evaluate_general(model, {}, **options)
    assert result.partial and "no data for arc_challenge" in result.counts
    with pytest.raises(DataError, match="no data for arc_challenge"):
        evaluate_general(model, {}, faults="refuse", **options)


def test_refusals(model, mask, data, tmp_path):
    options = {"out": tmp_path, "data": data, "names": ["PIQA"], "shots": [0], **QUICK}
    with pytest.raises(ConfigError, match="shots must be one or more different numbers"):
        evaluate_general(model, {}, **{**options, "shots": []})
    with pytest.raises(ConfigError, match="batch_size 0"):
        evaluate_general(model, {}, **{**options, "batch_size": 0})
    with pytest.raises(CheckpointError, match="mask for 'a'"):
        evaluate_general(model, {"a": ExpertMask(mask.keep_REE, fingerprint="another")}, **options)
    with pytest.raises(CheckpointError, match="no tokenizer found"):
        evaluate_general(model, {}, tokenizer=str(tmp_path), **options)
    with pytest.raises(DataError, match="PIQA: 1 of 1 questions have a score, and an interval needs two"):
        evaluate_general(model, {}, limit=1, **options)
    with mask.applied_to(model), pytest.raises(ConfigError, match="already applied"):
        evaluate_general(model, {}, **options)
    model.lm_head.weight.data[:] = float("nan")
    with pytest.raises(NonFiniteError, match="log-likelihood nan"):
        evaluate_general(model, {}, **options)


def test_a_format_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match="monet-other/1"):
        GeneralResult.from_json({"format": "monet-other/1"})
    with pytest.raises(CheckpointError, match=r"run `monet eval general` again"):
        GeneralResult.from_json({"format": GeneralResult.FORMAT})


def test_parts_gather_to_the_whole(model, mask, data, tmp_path, monkeypatch):
    options = {"data": data, "names": ["ARC", "PIQA"], "shots": [0], **QUICK, "controls": Controls(2)}
    whole = evaluate_general(model, {"some": mask}, out=tmp_path / "whole", **options)
    assert whole is not None
    for index in range(3):
        part = Part(index, 3)
        assert evaluate_general(model, {"some": mask}, out=tmp_path / "parts", part=part, **options) is None
    monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("a question was asked again"))
    gathered = evaluate_general(model, {"some": mask}, out=tmp_path / "parts", **options)
    assert gathered is not None and gathered.rows == whole.rows and gathered.denominators == whole.denominators
