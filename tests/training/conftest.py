"""A small prepared text, and runs of train.py on it within the test's process."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from monet.training.cli import main
from tests.training.runs import SHAPE

WORDS = {
    "animals": ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "far", "from", "home", "while", "rain", "fell"],
    "code": ["def", "return", "for", "in", "range", "import", "class", "self", "print", "lambda", "yield", "raise"],
}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    from monet.data.preparation.prepare import prepare

    root = tmp_path_factory.mktemp("corpus")
    chooser = random.Random(1)
    for domain, words in WORDS.items():
        (root / "text" / domain).mkdir(parents=True)
        for number in range(40):
            text = f"Number {number}. " + " ".join(chooser.choice(words) for _ in range(150))
            (root / "text" / domain / f"{number}.txt").write_text(text, encoding="utf-8")
    splits = {"train": 0.6, "validation": 0.2, "identify": 0.1, "evaluate": 0.1}
    prepare(str(root / "text"), root / "prepared", vocab_size=280, splits=splits)
    return root / "prepared"


@pytest.fixture
def settings(data_dir) -> dict:
    """A run of 12 steps of two micro-batches with a checkpoint every 4; tests change what they need."""
    return {
        "seed_everything": 1,
        "checkpoint_every": 4,
        "cpu_threads": 1,
        "loggers": ["csv"],
        "model": {
            "shape": dict(SHAPE),
            "optimizer": {"learning_rate": 3e-3, "router_lr_multiplier": 2.0},
            "schedule": {"name": "cosine", "warmup_steps": 3},
        },
        "data": {"data_dir": str(data_dir), "seq_len": 32, "batch_size": 2, "max_val_windows": 4},
        "trainer": {
            "max_steps": 12, "accumulate_grad_batches": 2, "val_check_interval": 16, "accelerator": "cpu", "devices": 1,
        },
    }  # fmt: skip


@pytest.fixture
def train(tmp_path, settings, monkeypatch):
    """Calls train.py's main on a run folder; arguments are further words of the command line."""
    monkeypatch.setattr(sys, "argv", ["train.py"])  # LightningCLI reads it too

    def run(name: str = "run", *words: str) -> SimpleNamespace:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        run_dir = tmp_path / name
        code = main(["fit", "--config", str(config), "--run_dir", str(run_dir), *words])
        return SimpleNamespace(code=code, run_dir=run_dir, checkpoints=run_dir / "checkpoints", config=config)

    return run
