"""Signals, kills, full disks, lack of memory and failing workers, tested on real processes (fault_driver.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SAVED = "cannot write checkpoint"


def drive(folder: Path, *scenarios: str, **environment: str) -> dict:
    command = [sys.executable, "-m", "tests.training.fault_driver", str(folder), *scenarios]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    return drive(tmp_path_factory.mktemp("faults") / "all")


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("train.py: error: ")]


@pytest.mark.parametrize(("name", "code"), [("sigterm", 143), ("sigint", 130)])
def test_a_signal_finishes_the_step_and_saves(results, name, code):
    """Also if the signal comes twice at almost the same time, from a scheduler and from a launcher."""
    result = results[name]
    assert result["code"] == code
    assert result["logged"] == result["valid"] > 0
    assert "finishing the step and saving" in result["said"]
    assert f"after step {result['valid']}; run the same command to continue" in result["said"]
    assert "Traceback" not in result["said"]


def test_a_second_signal_ends_at_once_and_corrupts_nothing(results):
    result = results["sigterm twice"]
    assert result["code"] == 143
    assert result["seconds"] < 2  # a step takes six
    assert result["valid"] == 4
    assert result["after"] == {"code": 0, "differences": []}


def test_a_second_signal_inside_a_save_leaves_the_checkpoint_before(results):
    result = results["sigterm twice inside a save"]
    assert result["code"] == 143
    assert result["valid"] == 4
    assert [name.partition(".tmp-")[0] for name in result["names"]] == [".step-00000008", "step-00000004"]
    assert result["after"] == 0
    assert result["names_after"] == ["step-00000008", "step-00000012"]


def test_a_checkpoint_can_be_asked_for(results):
    result = results["sigusr1"]
    assert result["code"] == 0
    first, last = result["names"]
    assert first in ("step-00000002", "step-00000003")  # the signal can come right after the line of step 2
    assert last == "step-00000005"


def assert_killed_saves_leave_a_whole_checkpoint(rows: list[dict]) -> None:
    assert {row["code"] for row in rows} == {-9}
    for row in rows:
        published = [name for name in row["left"] if not name.startswith(".")]
        assert row["valid"] == int(published[-1].removeprefix("step-"))
        assert row["again"] == 0
        assert row["differences"] == [], row
        assert not [name for name in row["names"] if name.startswith(".")]
    assert {row["valid"] for row in rows} == {4, 8}


def test_a_kill_inside_a_save_leaves_a_whole_checkpoint(results):
    assert_killed_saves_leave_a_whole_checkpoint(results["killed in a save"])


@pytest.mark.nightly
def test_a_kill_before_every_change_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    rows = drive(tmp_path / "every", "killed in a save", MONET_EVERY_CHANGE="1")["killed in a save"]
    assert len(rows) > 40
    assert_killed_saves_leave_a_whole_checkpoint(rows)


def test_a_checkpoint_that_cannot_be_written_stops_the_run(results):
    result = results["file too large, stop"]
    assert result["code"] == 4 and result["valid"] == 4 and result["names"] == ["step-00000004"]
    assert result["logged"] == 8
    (error,) = errors(result["said"])
    assert NOT_SAVED in error and "step-00000008" in error and "File too large" in error
    assert "a checkpoint takes about 3" in error and "are free in" in error
    assert result["after"] == 0


def test_the_run_can_go_on_without_but_not_end_without(results):
    result = results["file too large, continue"]
    assert result["code"] == 4 and result["valid"] == 4
    assert result["logged"] == 12
    assert "training continues, and the next checkpoint is tried when it is due" in result["said"]
    (error,) = errors(result["said"])
    assert "step-00000012" in error
    assert result["after"] == 0


def test_a_full_disk(results):
    if (result := results["disk full"]) is None:
        pytest.skip("mounting a small file system is not allowed here")
    assert result["code"] == 4 and result["names"] == ["step-00000002", "step-00000004"] and result["valid"] == 4
    (error,) = errors(result["said"])
    assert "step-00000006" in error and "No space left on device" in error and "bytes" in error


def test_a_disk_that_becomes_read_only(results):
    if (result := results["disk read-only"]) is None:
        pytest.skip("mounting a small file system is not allowed here")
    assert result["code"] == 4 and result["valid"] == 4 and result["logged"] == 8
    (error,) = errors(result["said"])
    assert NOT_SAVED in error and "Read-only file system" in error


def test_a_log_that_cannot_be_written_stops_the_run(results):
    result = results["log takes no more"]
    assert result["code"] == 1 and result["valid"] == 4
    (error,) = errors(result["said"])
    assert "metrics.jsonl" in error and "cannot add" in error and "bytes" in error
    assert result["after"] == {"code": 0, "differences": []}


def test_memory_that_runs_out(results):
    result = results["out of memory"]
    assert result["code"] == 6
    (error,) = errors(result["said"])
    assert "you tried to allocate 4294967296 bytes" in error and "lower data.batch_size" in error
    assert result["names"] == ["step-00000004"]
    assert result["after"] == {"code": 0, "differences": []}


@pytest.mark.parametrize(("name", "message"), [
    ("worker dies", "failed: DataLoader worker (pid"),
    ("worker raises", "shard-00000.bin: offset 96: id 999 is outside the vocabulary"),
    ("worker hangs", "data loading failed: DataLoader timed out after 3"),
])  # fmt: skip
def test_a_loaders_worker_that_fails_ends_the_run_in_bounded_time(results, name, message):
    result = results[name]
    assert result["code"] == 3
    assert message in errors(result["said"])[0]
    assert result["seconds"] < 60
    assert result["left"] == []
