"""A conversion that was killed or stopped in stage 1 continues with the same bits; damage is passed over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from monet.cli import main
from monet.convert.dense.state import LayerCheckpoints, keep_settings
from monet.errors import CheckpointError, ConfigError
from tests.marks import nightly
from tests.test_layout import ROOT


def in_process(step: int, signal_name: str, words: list[str], stage: int = 1) -> int:
    """Run a command that gets a signal after a step; returns the exit code, negative for a signal that killed it."""
    command = [sys.executable, "-m", "tests.convert.dense.killed", str(stage), str(step), signal_name, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=300).returncode


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture
def whole(words, tmp_path) -> dict[str, torch.Tensor]:
    """The weights of a conversion that ran without interruption."""
    assert main(words(out=tmp_path / "whole")) == 0
    return weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0, nightly(100)])
def test_a_killed_run_continues_with_the_same_bits(words, tmp_path, whole, minutes):
    """With a checkpoint after each step, and with only the one before the first step."""
    command = words(save_minutes=minutes)
    assert in_process(6, "SIGKILL", command) == -9
    kept = sorted(path.name for path in (tmp_path / "run" / "layers").glob("step-*"))
    assert kept == (["step-00000004", "step-00000005"] if minutes == 0 else ["step-00000000"])
    assert in_process(0, "SIGKILL", command) == 0
    assert_same(weights(tmp_path / "run"), whole)


@pytest.mark.nightly
def test_sigterm_stops_after_the_step_with_a_checkpoint(words, tmp_path, whole):
    command = words(save_minutes=100)
    assert in_process(6, "SIGTERM", command) == 143
    assert (tmp_path / "run" / "layers" / "step-00000006").is_dir()
    assert main(command) == 0
    assert_same(weights(tmp_path / "run"), whole)


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path):
    checkpoints = LayerCheckpoints(tmp_path)
    for step in range(4):
        checkpoints.save(step, {"weight": torch.full((3,), float(step)), "step": step})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]
    path, state = checkpoints.newest()
    assert state["step"] == 3 and state["weight"].tolist() == [3.0] * 3
    tensors = path / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    assert checkpoints.newest()[1]["step"] == 2
    for folder in tmp_path.iterdir():
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        checkpoints.newest()


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / ".step-00000003.tmp-1234").mkdir(parents=True)
    LayerCheckpoints(tmp_path).remove_leftovers()
    assert not list(tmp_path.iterdir())
    assert LayerCheckpoints(tmp_path).newest() is None


def test_changed_settings_are_refused_by_name(tmp_path):
    keep_settings(tmp_path, {"tokens": 5, "layers": (1, 2)})
    keep_settings(tmp_path, {"tokens": 5, "layers": [1, 2]})
    with pytest.raises(ConfigError, match="tokens 6 differs from 5"):
        keep_settings(tmp_path, {"tokens": 6, "layers": [1, 2]})
    with pytest.raises(ConfigError, match="layers"):
        keep_settings(tmp_path, {"tokens": 5})


def test_a_folder_with_other_files_is_refused(words, tmp_path, dense, capsys):
    assert main(words(out=dense)) == 2
    assert "holds other files (config.json)" in capsys.readouterr().err
    assert not (dense / "convert.json").exists()


def test_a_run_continues_only_with_its_settings(words, tmp_path, capsys):
    assert main(words()) == 0
    assert main(words(learning_rate=0.01)) == 2
    assert "learning_rate 0.01 differs from 0.0015" in capsys.readouterr().err
    assert main(words(layers="1,3")) == 2
    assert "layers [1, 3] differs from [" in capsys.readouterr().err
    assert main(words(save_minutes=1)) == 0
    assert "holds the finished model" in capsys.readouterr().out
