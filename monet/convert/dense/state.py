"""The folder of a conversion: its settings, and the checkpoints of stage 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from monet.errors import CheckpointError, ConfigError
from monet.files import MANIFEST_NAME, atomic_directory, atomic_write_json, verify_manifest, write_manifest
from monet.json_text import parse_json, read_json
from monet.training.checkpoints import tree

SETTINGS, LAYERS = "convert.json", "layers"
_TENSORS, _TREE = "state.safetensors", "state.json"
_KEPT = 2


class LayerCheckpoints:
    """Checkpoints of stage 1: folders step-00000000 with tensors, JSON and hashes; the newest two are kept.

    A folder is either whole or absent. A damaged one is passed over.

    Args:
        folder: RUN/layers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def remove_leftovers(self) -> None:
        """Remove what a killed process left of a checkpoint that it was writing."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove older ones; the newest two stay."""
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return final
        document, tensors = tree.encode(dict(state))
        with atomic_directory(final) as target:
            save_file(tensors, target / _TENSORS)
            (target / _TENSORS).chmod(target.stat().st_mode & 0o666)
            (target / _TREE).write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
            write_manifest(target)
        for old in self._folders()[:-_KEPT]:
            (old / MANIFEST_NAME).unlink(missing_ok=True)  # from now on it counts as incomplete
            shutil.rmtree(old)
        return final

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its state; None if there is none.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        faults: list[str] = []
        for path in reversed(self._folders()):
            try:
                verify_manifest(path, full=True)
                tensors = load_file(path / _TENSORS)
                return path, tree.decode(read_json(path / _TREE, CheckpointError), tensors)
            except (CheckpointError, OSError, SafetensorError) as error:
                faults.append(str(error))
        if faults:
            raise CheckpointError(
                f"{self.folder}: no whole checkpoint ({faults[0]}); remove the folder to start stage 1 again"
            )
        return None


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Record the settings of a new conversion, or refuse to continue one that had others.

    Args:
        out: the folder of the conversion.
        settings: by the name of the option; JSON values.
    Raises:
        ConfigError: a setting differs (the message names it with both values), or a new folder holds other files.
        CheckpointError: the record cannot be read.
    """
    path = out / SETTINGS
    here = parse_json(json.dumps(dict(settings)), str(path))
    if not path.is_file():
        if foreign := sorted(found.name for found in out.iterdir() if found.name != LAYERS):
            raise ConfigError(f"out {out} holds other files ({foreign[0]}); choose a folder that does not exist yet")
        atomic_write_json(path, here)
        return
    stored = read_json(path, CheckpointError)
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: must hold a JSON object; remove the folder to start again")
    for name in [*here, *(name for name in stored if name not in here)]:
        if stored.get(name) != here.get(name):
            raise ConfigError(
                f"{name} {here.get(name)!r} differs from {stored.get(name)!r}, with which {out} was started; restore "
                "that value, or choose another --out"
            )
