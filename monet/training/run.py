"""A run's folder: lock for one process, choice of the checkpoint, record of settings, random states.

run_dir/
  config.yaml            everything the run was started with
  starts.jsonl           one line per start: step, versions, settings that differ from the start before
  metrics.jsonl          one line per optimiser step; validation.jsonl: one per validation
  spikes.jsonl           one line per step with a loss spike; nonfinite/: one file per step with a non-finite number
  tokenizer/             the tokenizer of the model
  checkpoints/step-*/    see monet/training/checkpoints/checkpoint.py
  logs/                  CSV and TensorBoard
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from monet.errors import CheckpointError, ConfigError
from monet.files import atomic_directory, atomic_write_json, refuse_links_out
from monet.json_text import read_json
from monet.training.checkpoints.checkpoint import Selection, newest_valid, remove_leftovers, set_aside


class RunDirectory:
    """The folder of one run, locked by one process from `open` until that process ends.

    Args:
        path: the folder; created if missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self._lock = FileLock(self.path / ".lock")

    def acquire(self) -> None:
        """Lock the folder for this process.

        Raises:
            ConfigError: another process uses it (the message names the process), or it cannot be written.
        """
        owner = self.path / ".owner.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            atomic_write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
        except Timeout:
            raise ConfigError(
                f"run_dir {self.path} is in use by {_describe_owner(owner)}; wait for it, or choose another run_dir"
            ) from None
        except OSError as error:
            raise ConfigError(f"run_dir {self.path} cannot be used: {error}") from None

    def release(self) -> None:
        """Release the folder."""
        self._lock.release()

    def choose_checkpoint(self) -> Selection:
        """Remove leftovers of an interrupted save, find the newest valid checkpoint, and report invalid ones.

        Raises:
            CheckpointError: there are checkpoints, but none is valid; nothing is changed.
        """
        remove_leftovers(self.checkpoints)
        selection = newest_valid(self.checkpoints)
        if selection.folder is None and selection.rejected:
            reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in selection.rejected)
            raise CheckpointError(
                f"run_dir {self.path} has checkpoints, but none is valid: {reasons}. Repair one, choose another"
                f" run_dir, or remove {self.checkpoints} to start again"
            )
        for folder, reason in selection.rejected:
            rank_zero_warn(f"checkpoint {folder.name} is not valid and is set aside: {reason}")
            set_aside(folder)
        return selection


def _describe_owner(path: Path) -> str:
    try:
        owner = read_json(path)
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


class TokenizerCopy(Callback):
    """Keeps the data's tokenizer in the run's folder, and refuses to continue with a different one."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        source = _tokenizer_of_data(trainer)
        if source is None or not self.run.tokenizer.exists():
            return
        for path in sorted(source.iterdir()):
            copy = self.run.tokenizer / path.name
            if not copy.is_file() or copy.read_bytes() != path.read_bytes():
                raise ConfigError(
                    f"tokenizer file {path} differs from {copy}, with which the run was started; use the data it was"
                    " started with, or a new run_dir"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # write only now, so that a refused start leaves no tokenizer behind
        source = _tokenizer_of_data(trainer)
        if source is not None and not self.run.tokenizer.exists():
            refuse_links_out(source, source.rglob("*"))
            with atomic_directory(self.run.tokenizer) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)


def _tokenizer_of_data(trainer: Trainer) -> Path | None:
    """Return the folder of the data's tokenizer in the process that manages the run's tokenizer; None in the others."""
    source = getattr(trainer.datamodule, "tokenizer_dir", None)  # type: ignore[attr-defined]
    return Path(source) if source is not None and trainer.is_global_zero else None


class RandomState(Callback):
    """Saves and restores torch's, numpy's and Python's generators, and keeps validation from moving them.

    Each training step starts from the state at the end of the step before, no matter what ran in between. Each rank has
    its own generators. A run that continues with another number of ranks seeds them again, from seed, step and rank.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.state is None and (trainer.world_size > 1 or trainer.global_step):
            key = f"{torch.initial_seed()}/{trainer.global_step}/{trainer.global_rank}"
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.state is not None:
            _set_random_state(self.state)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.state = _random_state()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["rank_state"] = {"generators": self.state}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if (own := checkpoint.get("rank_state")) is not None:
            self.state = own["generators"]


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": np.random.get_state(), "python": random.getstate()}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
