"""Records in starts.jsonl which settings changed between two starts of a run, and prints the changes."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from monet import __version__
from monet.errors import ConfigError
from monet.files import atomic_write_bytes

STARTS = "starts.jsonl"
MISSING = "(not set)"


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two configurations, by dotted name: value before and now."""
    old, new = _flat(before), _flat(now)
    names = sorted(old.keys() | new.keys())
    pairs = {name: (old.get(name, MISSING), new.get(name, MISSING)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def record_start(run_dir: Path, config: str, step: int, stage_from: Path | None = None) -> dict[str, tuple[Any, Any]]:
    """Add a line to starts.jsonl, and print which settings differ from those in config.yaml, if it exists.

    Args:
        run_dir: the run's folder; its config.yaml is still that of the previous start.
        config: YAML of the whole configuration now.
        step: optimiser step from which the run continues.
        stage_from: checkpoint of another run from which this run starts; settings are compared with that run's.
    Returns:
        The changed settings. Changes of the model or the data are refused earlier.
    Raises:
        ConfigError: the existing config.yaml is not valid YAML.
    """
    path, changed = (run_dir if stage_from is None else stage_from.parent.parent) / "config.yaml", {}
    if path.is_file():
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); remove it, the next start writes a new one") from None
        changed = changed_settings(before if isinstance(before, dict) else {}, yaml.safe_load(config))
    entry = {
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "monet": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "stage_from": None if stage_from is None else str(stage_from),
        "changed": {name: {"before": before, "now": now} for name, (before, now) in changed.items()},
    }
    starts = run_dir / STARTS
    whole_lines, _, _ = starts.read_bytes().rpartition(b"\n") if starts.is_file() else (b"", b"", b"")
    atomic_write_bytes(starts, whole_lines + (b"\n" if whole_lines else b"") + json.dumps(entry).encode() + b"\n")
    for name, (before, now) in changed.items():
        print(
            f"changed since {'the last start' if stage_from is None else path}: {name}: {before!r} -> {now!r}",
            flush=True,
        )
    return changed


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
