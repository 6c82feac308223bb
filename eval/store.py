"""Outcomes of single examples, kept on disk as they come, so that a killed evaluation goes on where it was.

One file holds the outcomes of one pass: one model under one mask on one set of examples with one set of settings. Its
name is a hash of all that, so an outcome is found again only where it would come out the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from typing_extensions import Self

from monet.errors import ConfigError, DataError
from monet.eval.loading import mask_digest, provenance_now, weights_digest
from monet.json_text import parse_json

if TYPE_CHECKING:
    from monet.masks import ExpertMask
    from monet.modeling_monet import MonetPreTrainedModel

FORMAT = "monet-outcomes/1"


def model_key(model: MonetPreTrainedModel) -> dict[str, Any]:
    """What a model's outcomes depend on, beside mask, examples and settings: weights, precision, device, versions.

    Args:
        model: a Monet model, or a dense one.

    Raises:
        ConfigError: a `with mask.applied_to(model)` block is open; no key would tell of that mask.
    """
    body: Any = model.base_model
    if hasattr(body, "active_masks") and body.active_masks.applied:
        raise ConfigError(
            "a mask is already applied to the model, and outcomes are kept under the masks given here only; leave its "
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
    }


def _float32_precision() -> str:
    """Who multiplies float32 matrices, and with how many bits: torch's setting for all backends, if there is one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "by backend"


class ExampleStore:
    """A file of outcomes by example id; a line an example, in the order they came.

    Use it as a context: it holds a lock while it is open. A line that a kill left half written is dropped at the next
    start, and its example is done again.

    Args:
        folder: where the files lie; made if it is missing.
        key: everything the outcomes depend on, JSON-able; see `model_key`.
        mask: experts removed, beside those of a mask stored in the model; part of the key.

    Attributes:
        path: the file.

    Raises:
        ConfigError: another process has the file open.
        DataError: a damaged line before the last one.
    """

    def __init__(self, folder: str | os.PathLike[str], key: Mapping[str, Any], mask: ExpertMask | None = None) -> None:
        content = json.dumps({**key, "mask": mask_digest(mask)}, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        self.key: dict[str, Any] = json.loads(content)  # as it is read again: a tuple is a list there
        self.path = Path(folder) / f"{digest[:32]}.jsonl"
        self._lock = FileLock(self.path.with_suffix(".lock"))
        self._outcomes: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"{self.path} is open in another process that evaluates the same; wait for it, or name another folder"
            ) from None
        try:
            whole = self._read()
            self._file = open(self.path, "r+b" if self.path.exists() else "wb")
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._append({"format": FORMAT, "key": self.key})
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        finally:
            self._lock.release()

    def __contains__(self, example: str) -> bool:
        return example in self._outcomes

    def __len__(self) -> int:
        return len(self._outcomes)

    def __getitem__(self, example: str) -> Any:
        return self._outcomes[example]

    def put(self, example: str, outcome: Any) -> None:
        """Keep one outcome; it survives a kill of this process from here on.

        Args:
            example: id, unique within the pass.
            outcome: JSON-able, without NaN.

        Raises:
            DataError: the example has an outcome already.
        """
        if example in self._outcomes:
            raise DataError(f"example {example!r} occurs twice; ids must be unique within an evaluation")
        self._append({"id": example, "outcome": outcome})
        self._outcomes[example] = outcome

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def _read(self) -> int:
        """Take in what is there; the number of bytes that are whole lines."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines()):
            try:
                entry = parse_json(line, str(self.path))
                if number:
                    self._outcomes[entry["id"]] = entry["outcome"]
                elif entry != {"format": FORMAT, "key": self.key}:
                    raise ValueError("the first line is another evaluation's")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}: line {number + 1} is damaged ({error}); remove the file to do its examples again"
                ) from None
        return whole
