"""Tests that kill a training process: the same command then continues it bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from monet.training.checkpoints.checkpoint import newest_valid
from tests.training.runs import losses

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 900  # for one process; a loaded machine needs minutes, a quiet one needs seconds


@pytest.fixture
def start():
    """Starts train.py on a run folder; processes that still run at the end of the test are killed."""
    started = []

    def start_one(config, run_dir):
        command = [sys.executable, "train.py", "fit", "--config", str(config), "--run_dir", str(run_dir)]
        with open(f"{run_dir}.log", "a", encoding="utf-8") as log:
            started.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def kill_at(process, run_dir, step):
    """SIGKILL once `step` lines are logged; False if the process ended before."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            lines = (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            lines = 0
        if lines >= step:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def test_a_killed_process_is_continued_bit_for_bit(train, start, tmp_path):
    """One process killed right after a step and continued here, against an undisturbed run."""
    whole = train("whole")
    victim = start(whole.config, tmp_path / "run")
    assert kill_at(victim, tmp_path / "run", 6)
    assert newest_valid(tmp_path / "run" / "checkpoints").step in (4, 8)
    run = train()
    assert run.code == 0
    assert losses(run.run_dir) == losses(whole.run_dir)


@pytest.mark.nightly
def test_the_smoke_run_survives_repeated_kills(start, tmp_path):
    """configs/smoke.yaml, killed at random steps (also inside saves) until it ends, against an uninterrupted run."""
    config = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    config["data"]["data_dir"] = str(tmp_path / "data")
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert start(path, tmp_path / "whole").wait(TIMEOUT_SECONDS) == 0
    reference = losses(tmp_path / "whole")
    assert [step for step, _ in reference] == list(range(1, 41))

    chooser, run_dir, kills = random.Random(os.environ.get("MONET_KILL_SEED", "0")), tmp_path / "run", 0
    while kills < 3:
        reached = newest_valid(run_dir / "checkpoints").step
        if kill_at(start(path, run_dir), run_dir, chooser.randint(reached + 1, 38)):
            kills += 1
    assert start(path, run_dir).wait(TIMEOUT_SECONDS) == 0
    assert losses(run_dir) == reference
    assert not list((run_dir / "checkpoints").glob(".*"))
    for name in ("model.safetensors", "trainer.safetensors", "state.json"):
        last = Path("checkpoints") / "step-00000040" / name
        assert (run_dir / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    shutil.rmtree(run_dir)
