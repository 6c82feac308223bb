"""Checkpoints as folders without pickle, in one format for every strategy and number of ranks.

step-00000120/
  model.safetensors      weights and statistics under their released names (a tied lm_head is absent); the float32
                         master copy if the training has one
  optimizer.safetensors  state of the optimiser, named PARAMETER/exp_avg and so on
  config.json            the model's configuration, so that the folder also loads as a Hugging Face model
  trainer.safetensors    tensors of all other state
  state.json             the tree that refers to those tensors: loops, schedule, data position, callbacks
  rank-00000.safetensors state of one rank: its random generators
  MANIFEST.json          size and SHA-256 of the files above; a folder without it is unfinished

Large model and optimiser states are split into numbered files with an index; every rank writes some of them.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from monet.errors import CheckpointError, ConfigError
from monet.files import MANIFEST_NAME, verify_manifest
from monet.json_text import read_json
from monet.training.checkpoints import tensor_files, tree
from monet.training.checkpoints.tensor_files import StoredTensors

log = logging.getLogger(__name__)

CONFIG, TENSORS, STATE = "config.json", "trainer.safetensors", "state.json"
MODEL, OPTIMIZER = "model", "optimizer"  # prefixes of file names
FORMAT_VERSION = 2
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` optimiser steps."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the number of finished optimiser steps from a checkpoint's folder name.

    Raises:
        CheckpointError: the name is not `step-` and at least eight digits.
    """
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder}: a checkpoint's folder is named step-00000000 with its number of steps")
    return int(match[1])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Return published checkpoint folders, oldest first, without checking them."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if path.is_dir() and _STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of)


def verify_checkpoint(folder: Path, *, full: bool, with_optimizer: bool = True) -> None:
    """Check a checkpoint's files against its manifest; `full` also checks their content.

    Args:
        folder: the checkpoint.
        full: compare hashes.
        with_optimizer: also check the optimiser's state, which is not needed if only weights are read.

    Raises:
        CheckpointError: names the file and the fault; also if the manifest lacks a file that would be read.
    """
    verify_manifest(folder, full=full, unread=None if with_optimizer else OPTIMIZER)
    listed = _read_json(folder / MANIFEST_NAME)["files"]
    for name in (CONFIG, TENSORS, STATE):
        _refuse_unlisted(folder, name, listed)
    state = _read_json(folder / STATE).get("state")
    ranks = state.get("world_size") if isinstance(state, dict) else None
    for rank in range(ranks if isinstance(ranks, int) else 1):
        _refuse_unlisted(folder, rank_file(rank), listed)
    for stem in (MODEL, OPTIMIZER):
        index = folder / tensor_files.index_name(stem)
        if index.exists():
            _refuse_unlisted(folder, index.name, listed)
        for name in tensor_files.names_of(folder, stem):
            _refuse_unlisted(folder, name, listed)


def _refuse_unlisted(folder: Path, name: str, listed: Container[str]) -> None:
    if name not in listed:
        raise CheckpointError(f"{folder}: {MANIFEST_NAME} does not list {name}")


@dataclass(frozen=True)
class Selection:
    """The newest valid checkpoint (None if there is none), and why newer ones were rejected."""

    folder: Path | None
    rejected: list[tuple[Path, str]]

    @property
    def step(self) -> int:
        return 0 if self.folder is None else step_of(self.folder)


def newest_valid(checkpoints: Path, with_optimizer: bool = True) -> Selection:
    """Find the newest checkpoint that matches its manifest, including hashes; see `verify_checkpoint`."""
    rejected: list[tuple[Path, str]] = []
    for folder in reversed(list_checkpoints(checkpoints)):
        try:
            verify_checkpoint(folder, full=True, with_optimizer=with_optimizer)
        except (CheckpointError, OSError) as error:
            rejected.append((folder, str(error)))
        else:
            return Selection(folder, rejected)
    return Selection(None, rejected)


def chosen_checkpoint(run: Path | None, checkpoint: Path | None, with_optimizer: bool = True) -> Path:
    """Return the checkpoint folder for a command: the newest valid one of a run, or a named one.

    Args:
        run: a run's folder.
        checkpoint: a checkpoint's folder; give one of the two.
        with_optimizer: as in `verify_checkpoint`.
    Raises:
        ConfigError: both or neither are given.
        CheckpointError: there is no checkpoint, or it is not valid.
    """
    if (run is None) == (checkpoint is None):
        raise ConfigError(f"give either run or checkpoint: got run = {run}, checkpoint = {checkpoint}")
    if checkpoint is not None:
        step_of(checkpoint)
        if not checkpoint.is_dir():
            raise CheckpointError(f"checkpoint {checkpoint} does not exist")
        verify_checkpoint(checkpoint, full=True, with_optimizer=with_optimizer)
        return checkpoint
    assert run is not None
    selection = newest_valid(run / "checkpoints", with_optimizer)
    if selection.folder is None:
        reasons = "; ".join(f"{folder.name}: {reason}" for folder, reason in selection.rejected)
        raise CheckpointError(f"run {run} has no valid checkpoint{': ' + reasons if reasons else ''}")
    for passed_over, reason in selection.rejected:
        warnings.warn(f"checkpoint {passed_over.name} is not valid and is skipped: {reason}", stacklevel=3)
    return selection.folder


def set_aside(folder: Path) -> Path:
    """Rename an invalid checkpoint so that its step can be written again; nothing is deleted."""
    for number in range(1000):
        target = folder.with_name(f"{folder.name}.invalid-{number}")
        if not target.exists():
            return folder.rename(target)
    raise CheckpointError(f"{folder}: there are already a thousand invalid copies next to it; remove some")


def remove_leftovers(checkpoints: Path) -> None:
    """Remove leftovers of an interrupted save or deletion. Only the process that holds the run may call it."""
    for path in checkpoints.glob(".step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(checkpoints: Path, keep_last: int, keep_every: int | None = None, keep_step: int | None = None) -> None:
    """Delete old checkpoints, but always keep a valid one.

    A checkpoint that cannot be deleted is reported and kept.

    Args:
        checkpoints: folder of the checkpoints.
        keep_last: number of newest checkpoints to keep.
        keep_every: also keep the first checkpoint of every interval of this many steps; None keeps no more.
        keep_step: also keep the checkpoint of this step.
    """
    folders = list_checkpoints(checkpoints)
    kept = {keep_step, *(_first_of_each(folders, keep_every) if keep_every is not None else ())}
    if not (old := [folder for folder in folders[:-keep_last] if step_of(folder) not in kept]):
        return
    if not any(_is_valid(folder) for folder in reversed(folders[-keep_last:])):
        log.warning("%s: none of the newest %d checkpoints is valid, so older ones are kept", checkpoints, keep_last)
        return
    for folder in old:
        try:
            doomed = folder.rename(folder.with_name(f".{folder.name}.tmp-removed"))
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("cannot delete the old checkpoint %s: %s", folder, error)


def _first_of_each(folders: list[Path], every: int) -> set[int]:
    """Return the steps of the first checkpoint at or after each multiple of `every`, even after deletions."""
    steps = [0, *map(step_of, folders)]
    return {step for before, step in pairwise(steps) if step // every > before // every}


def _is_valid(folder: Path) -> bool:
    try:
        verify_checkpoint(folder, full=False)
    except (CheckpointError, OSError):
        return False
    return True


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a checkpoint or exported model as a dictionary."""
    return _read_json(folder / CONFIG)


def read_weights(folder: Path) -> StoredTensors:
    """Return a checkpoint's weights under their released names, on the CPU; each is read on access."""
    return StoredTensors(folder, MODEL)


def rank_file(rank: int) -> str:
    """Return the name of the file with one rank's own state."""
    return f"rank-{rank:05d}.safetensors"


def read_entry(folder: Path, key: str) -> Any:
    """Return one top-level entry of a checkpoint's trainer state without reading other tensors; None if absent."""
    state = read_state(folder)
    if key not in state:
        return None
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(f"{key}.")}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS}: cannot be read: {error}") from None
    return tree.decode(state[key], tensors)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, CheckpointError)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a JSON object")
    return content


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's tree without weights and moments, as `monet.training.checkpoints.tree` encoded it."""
    stored = _read_json(folder / STATE)
    version, state = stored.get("format_version"), stored.get("state")
    if version != FORMAT_VERSION or not isinstance(state, dict):
        raise CheckpointError(
            f"{folder / STATE}: format_version {version!r}, but this monet continues only from {FORMAT_VERSION}. The"
            " weights are readable: model.init_from starts a new run with them"
        )
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of one safetensors file, on the CPU."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
