"""Outcomes of single examples, kept on disk as they come, so that a killed evaluation continues where it stopped.

One file holds the outcomes of one pass: one model under one mask on one set of examples with one set of settings. Its
name is a hash of all these, so an outcome is reused only if it would be the same again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import BaseFileLock, Timeout

from monet.errors import ConfigError, DataError
from monet.eval.core.appended import AppendedFile
from monet.eval.core.loading import mask_digest, provenance_now, weights_digest
from monet.json_text import parse_json

if TYPE_CHECKING:
    from monet.eval.core.intervention import Intervention
    from monet.model.modeling_monet import MonetPreTrainedModel
    from monet.parts import Part

FORMAT = "monet-outcomes/1"
_SOURCES = {".py", ".cpp", ".h"}


def model_key(model: MonetPreTrainedModel) -> dict[str, Any]:
    """What a model's outcomes depend on, apart from mask, examples and settings: weights, precision, device, code.

    Args:
        model: a Monet model, or a dense model.

    Raises:
        ConfigError: a `with mask.applied_to(model)` block is open; the key would not contain that mask.
    """
    body: Any = model.base_model
    if hasattr(body, "active_masks") and body.active_masks.applied:
        raise ConfigError(
            "a mask is already applied to the model, but outcomes are kept only under the masks given here; leave its "
            "`with` block first, or store it with model.set_expert_mask"
        )
    return {
        "weights": weights_digest(model),
        "stored_mask": mask_digest(getattr(model, "expert_mask", None)),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "attention": model.config._attn_implementation,
        "float32_products": _float32_precision(),
        "versions": provenance_now()["versions"],
        "sources": sources_digest(),
    }


@functools.cache
def sources_digest() -> str:
    """SHA-256 of the package's own sources: a change of the code may change outcomes, even in the same version."""
    import monet

    package, *checkout = map(Path, monet.__path__)
    folders = [(package, package), *((root, root / name) for root in checkout for name in ("eval", "kernels"))]
    files = {
        path.relative_to(root).as_posix(): path
        for root, folder in folders
        for path in folder.rglob("*")
        if path.suffix in _SOURCES
    }
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _float32_precision() -> str:
    """Precision of float32 matrix products: torch's setting for all backends, if there is one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "by backend"


def acquire(lock: BaseFileLock, path: Path) -> None:
    """Take a lock. If another process has it, wait and say so once on standard error.

    Args:
        lock: the lock to take; the caller releases it.
        path: the guarded file, for the message.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"monet: another process computes {path}; this process waits for it", file=sys.stderr)
        lock.acquire()


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class ExampleStore(AppendedFile):
    """A file of outcomes by example id, one line for each example, in the order in which they came.

    Use it as a context manager: it holds a lock while it is open. If a kill left a half-written line, the next start
    drops the line and does its example again.

    Args:
        folder: folder of the files; created if it is missing.
        key: everything that the outcomes depend on, JSON-able; see `model_key`.
        mask: experts to remove, in addition to those of a mask stored in the model; part of the key.
        wait: wait for another process that has the file open, and then read what it kept; otherwise refuse.
        part: this process's part of a suite whose parts all keep outcomes under this key. Each part writes a separate
            file, and every store of the key reads the files of all parts. None is the file without a part.
        parts: read the files of all parts; true if `part` is given.
        remember: what to hold in memory of an outcome; if omitted, the whole outcome.

    Attributes:
        path: the file that is written.

    Raises:
        ConfigError: another process has the file open, and `wait` is false.
        DataError: a line before the last one is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        key: Mapping[str, Any],
        mask: Intervention | None = None,
        *,
        wait: bool = False,
        part: Part | None = None,
        parts: bool = False,
        remember: Callable[[Any], Any] = lambda outcome: outcome,
    ) -> None:
        content = json.dumps({**key, "mask": mask_digest(mask)}, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        self.key: dict[str, Any] = json.loads(content)  # in the form in which it is read: a tuple becomes a list
        suffix = "" if part is None else f".{part.index}-of-{part.count}"
        path = Path(folder) / f"{digest[:32]}{suffix}.jsonl"
        super().__init__(
            path,
            f"{path} is open in another process with the same evaluation; wait for it, or name another folder",
        )
        self._of_parts = f"{digest[:32]}.*-of-*.jsonl" if parts or part is not None else None
        self._of_all = Path(folder) / f"{digest[:32]}.jsonl"
        self._wait = wait
        self._remember = remember
        self._outcomes: dict[str, Any] = {}

    def _whole_bytes(self) -> int:
        whole = self._read(self.path)
        for path in self._others():
            self._read(path)
        return whole

    def _first_line(self) -> bytes:
        return _line({"format": FORMAT, "key": self.key})

    def _acquire(self) -> None:
        if self._wait:
            acquire(self._lock, self.path)
        else:
            super()._acquire()

    def _others(self) -> Iterable[Path]:
        """Files of other parts. They grow while their processes run; whole lines are read without their locks."""
        if self._of_parts is None:
            return []
        return sorted({self._of_all, *self.path.parent.glob(self._of_parts)} - {self.path})

    def __contains__(self, example: str) -> bool:
        return example in self._outcomes

    def __len__(self) -> int:
        return len(self._outcomes)

    def __getitem__(self, example: str) -> Any:
        return self._outcomes[example]

    def put(self, example: str, outcome: Any) -> None:
        """Keep one outcome. It survives a kill of this process from now on.

        Args:
            example: id, unique within the pass.
            outcome: JSON-able, without NaN.

        Raises:
            DataError: the example already has an outcome.
        """
        if example in self._outcomes:
            raise DataError(f"example {example!r} occurs twice; ids must be unique within an evaluation")
        self._file.write(_line({"id": example, "outcome": outcome}))
        self._file.flush()
        self._outcomes[example] = self._remember(outcome)

    def stream(self) -> Iterator[tuple[str, Any]]:
        """Ids and whole outcomes in the order in which they came, read from the file line by line."""
        return ((id, outcome) for id, outcome, _ in self._entries(self.path, lambda outcome: outcome) if id is not None)

    def _read(self, path: Path) -> int:
        """Read the file into memory; return the number of bytes in whole lines."""
        whole = 0
        for id, outcome, end in self._entries(path, self._remember):
            whole = end
            if id is not None:
                self._outcomes.setdefault(id, outcome)
        return whole

    def _entries(self, path: Path, taken: Callable[[Any], Any]) -> Iterator[tuple[str | None, Any, int]]:
        """For every whole line: its id, what `taken` keeps of its outcome, and its end. The first line has no id."""
        if not path.exists():
            return
        end = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    entry = parse_json(line, str(path))
                    if not number and entry != {"format": FORMAT, "key": self.key}:
                        raise ValueError("the first line belongs to another evaluation")
                    found = (entry["id"], taken(entry["outcome"]), end) if number else (None, None, end)
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{path}: line {number + 1} is damaged ({error}); remove the file to do its examples again"
                    ) from None
                yield found
