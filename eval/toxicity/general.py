"""Averages of other tasks, from results of `monet eval general`, to stand beside the toxicity of the same masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monet.errors import CheckpointError
from monet.eval.conditions import Condition
from monet.eval.loading import mask_digest
from monet.eval.results import RESULT_NAME
from monet.files import sha256_file
from monet.json_text import read_json

FORMAT = "monet-general/1"


@dataclass(frozen=True)
class GeneralAverages:
    """Averages over the tasks of some results.

    Args:
        averages: by condition's name, by what was averaged ("0-shot"): accuracy from 0 to 1.
        experts: removed, by condition's name.
        masks: hashes of the masks (`monet.eval.loading.mask_digest`), by condition's name; of older results none.
        fingerprints: of the models they were measured on.
        description: the files; JSON-able.
    """

    averages: dict[str, dict[str, float]]
    experts: dict[str, int]
    masks: dict[str, str]
    fingerprints: set[str]
    description: list[dict[str, Any]]

    def check(self, fingerprint: str, asked: Iterable[Condition]) -> None:
        """Refuse averages of another model, or of other masks under the same names.

        Raises:
            CheckpointError: names what differs.
        """
        if others := self.fingerprints - {fingerprint}:
            raise CheckpointError(
                f"the general result is of another model (fingerprint {min(others)}, this one has {fingerprint})"
            )
        for condition in asked:
            here, there = condition.experts, self.experts.get(condition.name, condition.experts)
            if here != there:
                raise CheckpointError(
                    f"{condition.name!r} removes {here} experts here and {there} in the general result; evaluate the "
                    "same masks"
                )
            digest = mask_digest(condition.mask)
            if self.masks.get(condition.name, digest) != digest:
                raise CheckpointError(
                    f"{condition.name!r} is another mask in the general result, of as many experts; evaluate the same"
                )


def read_general(paths: Sequence[Path]) -> GeneralAverages:
    """Read results of `monet eval general`, from files or the folders that hold them.

    Raises:
        CheckpointError: no such result.
    """
    found = GeneralAverages({}, {}, {}, set(), [])
    for path in paths:
        file = path / RESULT_NAME if path.is_dir() else path
        try:
            content = read_json(file)
            if content["format"] != FORMAT:
                raise KeyError(f"format {content['format']!r}")
            mark = " (partial)" if content["partial"] else ""
            for row in content["rows"]:
                name = str(row["condition"])
                average = float(row["average"]["value"])
                found.averages.setdefault(name, {})[f"{int(row['shots'])}-shot{mark}"] = average
                found.experts[name] = int(row["experts"])
            found.masks.update(content["provenance"].get("mask_hashes", {}))
            if fingerprint := content["provenance"].get("model_fingerprint"):
                found.fingerprints.add(str(fingerprint))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}: no readable result of `monet eval general` ({error!r})") from None
        found.description.append({"sha256": sha256_file(file), "partial": bool(content["partial"])})
    return found
