"""Runs commands as two real processes over gloo, and runs train.py for comparison."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from benchmarks.processes import run_ranks
from tests.distributed.forked import ForkedRank
from tests.training.conftest import data_dir, train  # noqa: F401
from tests.training.runs import SHAPE

TIMEOUT_SECONDS = 900  # a loaded machine needs minutes, a quiet one needs seconds
Ranks = Callable[..., list[subprocess.CompletedProcess[str]]]


@pytest.fixture
def ranks(tmp_path) -> Ranks:
    """Runs a Python command as two ranks."""
    return lambda words, **environment: run_ranks(words, 2, tmp_path, TIMEOUT_SECONDS, environment, ForkedRank)


@pytest.fixture
def settings(data_dir) -> dict[str, Any]:  # noqa: F811
    """Six steps of two micro-batches, four windows per step, a checkpoint every three steps, no dropout."""
    return {
        "seed_everything": 1, "checkpoint_every": 3, "cpu_threads": 1, "loggers": [],
        "model": {
            "shape": {**SHAPE, "attention_dropout": 0.0},
            "optimizer": {"learning_rate": 3e-3, "router_lr_multiplier": 2.0},
            "schedule": {"name": "constant", "warmup_steps": 3},
        },
        "data": {"data_dir": str(data_dir), "seq_len": 32, "batch_size": 4, "max_val_windows": 4},
        "trainer": {
            "max_steps": 6, "accumulate_grad_batches": 2, "val_check_interval": 6, "accelerator": "cpu", "devices": 1,
            "deterministic": True,
        },
    }  # fmt: skip


@pytest.fixture
def train_words(tmp_path, settings) -> Callable[..., list[str]]:
    """The command of a run whose two ranks share the batch; arguments are its name, a strategy and further words."""

    def words(name: str, strategy: Any, *more: str, command: tuple[str, ...] = ("train.py",)) -> list[str]:
        config = copy.deepcopy(settings)
        config["data"]["batch_size"] //= 2
        config["trainer"] |= {"devices": 2, "strategy": strategy}
        path = tmp_path / f"{name}-ranks.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return [*command, "fit", "--config", str(path), "--run_dir", str(tmp_path / name), *more]

    return words


@pytest.fixture
def train_ranks(tmp_path, train_words, ranks) -> Callable[..., SimpleNamespace]:
    """Runs train.py as two ranks that share the batch; see `train_words`."""

    def run(
        name: str, strategy: Any, *words: str, command: tuple[str, ...] = ("train.py",), **environment: str
    ) -> SimpleNamespace:
        done = ranks(train_words(name, strategy, *words, command=command), **environment)
        run_dir: Path = tmp_path / name
        return SimpleNamespace(
            codes=[rank.returncode for rank in done], errors=[rank.stderr for rank in done], run_dir=run_dir,
            checkpoints=run_dir / "checkpoints", out=done[0].stdout,
        )  # fmt: skip

    return run
