"""Averages over other tasks, from results of `monet eval general`, to report next to the toxicity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from monet.errors import CheckpointError
from monet.eval.core.conditions import Condition
from monet.eval.core.estimate import Estimate
from monet.eval.core.loading import mask_digest
from monet.eval.core.results import RESULT_NAME, Result
from monet.files import sha256_file


@dataclass(frozen=True)
class _Row:
    """The fields that are read from a row: one condition at one number of shots."""

    condition: str
    control: int | None
    removed: int
    shots: int
    average: Estimate


@dataclass(frozen=True)
class _General(Result):
    """The fields that are read from a result of `monet eval general`."""

    FORMAT: ClassVar[str] = "monet-general/2"
    COMMAND: ClassVar[str] = "monet eval general"

    partial: bool
    rows: list[_Row]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class GeneralAverages:
    """Averages over the tasks of some results, for the unmasked model and for masks.

    Random controls are left out: they are drawn for each set of questions, so the results hold other controls.

    Args:
        averages: accuracy, 0 to 1, by the condition's name and then by number of shots ("0-shot").
        removed: number of removed units, by the condition's name.
        masks: digests of the masks (`monet.eval.core.loading.mask_digest`), by the condition's name; some results have
            none.
        fingerprints: fingerprints of the measured models.
        description: description of the files; JSON-able.
    """

    averages: dict[str, dict[str, float]]
    removed: dict[str, int]
    masks: dict[str, str]
    fingerprints: set[str]
    description: list[dict[str, Any]]

    def check(self, fingerprint: str, asked: Iterable[Condition]) -> None:
        """Refuse averages of another model, or of different masks under the same names.

        Raises:
            CheckpointError: the model or a mask differs; the message names it.
        """
        if others := self.fingerprints - {fingerprint}:
            raise CheckpointError(
                f"the general result belongs to another model (its fingerprint is {min(others)}, this model's is "
                f"{fingerprint}); evaluate this model"
            )
        for condition in asked:
            if condition.control is not None:
                continue
            here, there = condition.removed, self.removed.get(condition.name, condition.removed)
            if here != there:
                unit = "unit" if condition.like is None else condition.like.unit
                raise CheckpointError(
                    f"{condition.name!r} removes {here} {unit}s here and {there} in the general result; use results "
                    "of the same masks"
                )
            digest = mask_digest(condition.mask)
            if self.masks.get(condition.name, digest) != digest:
                raise CheckpointError(
                    f"{condition.name!r} is a different mask of the same size in the general result; use results of "
                    "the same masks"
                )


def read_general(paths: Sequence[Path]) -> GeneralAverages:
    """Read results of `monet eval general`, from files or the folders that hold them.

    Raises:
        CheckpointError: there is no such result.
    """
    found = GeneralAverages({}, {}, {}, set(), [])
    for path in paths:
        file = path / RESULT_NAME if path.is_dir() else path
        result = _General.load(file)
        mark = " (partial)" if result.partial else ""
        names = set()
        for row in result.rows:
            if row.control is None:
                names.add(row.condition)
                found.averages.setdefault(row.condition, {})[f"{row.shots}-shot{mark}"] = row.average.value
                found.removed[row.condition] = row.removed
        hashes = result.provenance.get("mask_hashes")
        if isinstance(hashes, dict):
            found.masks.update((name, digest) for name, digest in hashes.items() if name in names)
        if fingerprint := result.provenance.get("model_fingerprint"):
            found.fingerprints.add(str(fingerprint))
        found.description.append({"sha256": sha256_file(file), "partial": result.partial})
    return found
