"""Checkpoints as folders without pickle: released weight names, everything else as JSON and tensors, a manifest.

step-00000120/
  model.safetensors    weights and statistics under their released names (a tied lm_head is absent)
  config.json          MonetConfig, so that the folder also loads as a Hugging Face model
  trainer.safetensors  tensors of everything else: optimiser, random states, ...
  state.json           the tree those tensors hang in: loops, schedule, data position, callbacks
  MANIFEST.json        size and SHA-256 of the files above; a folder without it was never finished
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from monet.errors import CheckpointError
from monet.files import MANIFEST_NAME, atomic_directory, verify_manifest, write_manifest
from monet.training import tree

log = logging.getLogger(__name__)

WEIGHTS, CONFIG, TENSORS, STATE = "model.safetensors", "config.json", "trainer.safetensors", "state.json"
PREFIX = "model."  # the Lightning module holds the language model as `self.model`
FORMAT_VERSION = 1
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimiser steps."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Number of finished optimiser steps, read off a checkpoint's folder name.

    Raises:
        CheckpointError: the name is not `step-` and at least eight digits.
    """
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder}: a checkpoint's folder is named step-00000000 with its number of steps")
    return int(match[1])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Published checkpoint folders, oldest first; whether they are valid is not looked at."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if path.is_dir() and _STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=step_of)


def verify_checkpoint(folder: Path, *, full: bool) -> None:
    """Check a checkpoint's files against its manifest, with `full` their content too.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    verify_manifest(folder, full=full)
    files = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
    for name in (WEIGHTS, CONFIG, TENSORS, STATE):
        if name not in files:
            raise CheckpointError(f"{folder}: {MANIFEST_NAME} does not list {name}")


@dataclass(frozen=True)
class Selection:
    """The newest valid checkpoint (None: there is none) and why newer ones were passed over."""

    folder: Path | None
    rejected: list[tuple[Path, str]]

    @property
    def step(self) -> int:
        return 0 if self.folder is None else step_of(self.folder)


def newest_valid(checkpoints: Path) -> Selection:
    """Find the newest checkpoint whose manifest holds, hashes included."""
    rejected: list[tuple[Path, str]] = []
    for folder in reversed(list_checkpoints(checkpoints)):
        try:
            verify_checkpoint(folder, full=True)
        except (CheckpointError, OSError) as error:
            rejected.append((folder, str(error)))
        else:
            return Selection(folder, rejected)
    return Selection(None, rejected)


def set_aside(folder: Path) -> Path:
    """Rename an invalid checkpoint so that its step can be written again; nothing is deleted."""
    for number in range(1000):
        target = folder.with_name(f"{folder.name}.invalid-{number}")
        if not target.exists():
            return folder.rename(target)
    raise CheckpointError(f"{folder}: a thousand invalid copies lie beside it already; remove some")


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what an interrupted save or deletion left behind. Only the process that holds the run may call it."""
    for path in checkpoints.glob(".step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(checkpoints: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints; those kept always include a valid one.

    A checkpoint that cannot be deleted is reported and left.
    """
    folders = list_checkpoints(checkpoints)
    if not (old := folders[:-keep_last]):
        return
    if not any(_is_valid(folder) for folder in reversed(folders[-keep_last:])):
        log.warning("%s: none of the newest %d checkpoints is valid, older ones are kept", checkpoints, keep_last)
        return
    for folder in old:
        try:
            doomed = folder.rename(folder.with_name(f".{folder.name}.tmp-removed"))
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("cannot delete the old checkpoint %s: %s", folder, error)


def _is_valid(folder: Path) -> bool:
    try:
        verify_checkpoint(folder, full=False)
    except (CheckpointError, OSError):
        return False
    return True


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's or exported model's config.json as a dictionary."""
    return _read_json(folder / CONFIG)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights under their released names, on the CPU."""
    return _read_tensors(folder / WEIGHTS)


def read_entry(folder: Path, key: str) -> Any:
    """One top-level entry of a checkpoint's trainer state, without reading the others' tensors; None if absent."""
    state = _read_state(folder)
    if key not in state:
        return None
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(f"{key}.")}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TENSORS}: cannot be read: {error}") from None
    return tree.decode(state[key], tensors)


class FolderCheckpointIO(CheckpointIO):
    """Lightning's checkpoint dictionary <-> a checkpoint folder.

    The dictionary must hold the model's configuration as JSON-able dict under `config`, put there by the module.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the folder and publish it by renaming it to `path`.

        Raises:
            CheckpointError: a value that cannot be stored, or a disk that does not take it (the message says why).
        """
        rest = dict(checkpoint)
        weights, config = rest.pop("state_dict"), rest.pop("config")
        document, tensors = tree.encode(rest)
        try:
            with atomic_directory(path) as folder:
                save_file(_released(weights, config), folder / WEIGHTS, metadata={"format": "pt"})
                save_file(tensors, folder / TENSORS)
                _write_json(folder / CONFIG, config, indent=2)
                _write_json(folder / STATE, {"format_version": FORMAT_VERSION, "state": document})
                for name in (WEIGHTS, TENSORS):  # safetensors lets nobody else read what it writes
                    (folder / name).chmod((folder / CONFIG).stat().st_mode)
                write_manifest(folder)
        except FileExistsError:
            raise CheckpointError(f"{path} exists already; a checkpoint is never overwritten") from None
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write checkpoint {path}: {error}; earlier checkpoints are intact") from error

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a folder back. Sizes are checked here; hashes by `newest_valid`, which chooses the folder."""
        folder = Path(path)
        verify_checkpoint(folder, full=False)
        checkpoint = tree.decode(_read_state(folder), _read_tensors(folder / TENSORS))
        checkpoint["config"] = read_config(folder)
        weights = read_weights(folder)
        if checkpoint["config"].get("tie_word_embeddings"):
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        checkpoint["state_dict"] = {PREFIX + name: tensor for name, tensor in weights.items()}
        return checkpoint

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


def _released(state_dict: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    if foreign := [name for name in state_dict if not name.startswith(PREFIX)]:
        raise CheckpointError(f"weights outside the language model cannot be stored: {', '.join(sorted(foreign)[:5])}")
    weights = {name.removeprefix(PREFIX): tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    return weights


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a JSON object")
    return content


def _read_state(folder: Path) -> dict[str, Any]:
    stored = _read_json(folder / STATE)
    version, state = stored.get("format_version"), stored.get("state")
    if version != FORMAT_VERSION or not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE}: format_version {version!r}; this monet reads {FORMAT_VERSION}")
    return state


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
