"""Masks on the page: those that exist, those that a person collects, and their files.

Dims: R routing groups, N = E*E experts of a group, C labels, U units.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.selection import SUMMARY_NAME, load_masks, save_masks
from monet.eval.attribution.statistics.prompt_hashes import without_hashes
from monet.eval.index.index import Index
from monet.eval.index.units import Unit
from monet.eval.view import limits
from monet.eval.view.browse import Browser
from monet.eval.view.query import Query
from monet.eval.view.visible import visible
from monet.masks.expert_mask import ExpertMask

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _+-]{0,63}")


class Collection(msgspec.Struct, forbid_unknown_fields=True):
    """The experts that a person collected.

    Attributes:
        rules: parameters of queries; every expert that one of them chooses is collected.
        masks: names of masks whose experts are collected.
        add, drop: names of units to add, and then to leave out; a half stands for all experts with its key.
    """

    rules: list[dict[str, str]] = []
    masks: list[str] = []
    add: list[str] = []
    drop: list[str] = []


class Masks:
    """Masks by name.

    Args:
        index: the index, whose model the masks must fit.
        folders: folders of `monet select` or of this page.
        out: folder for new masks.

    Raises:
        CheckpointError: a folder has no masks, or a mask belongs to another model.
    """

    def __init__(self, index: Index, folders: Iterable[Path], out: Path) -> None:
        self.index, self.out = index, out
        self._removed: dict[str, NDArray[np.bool_]] = {}
        folders = list(dict.fromkeys(folders))
        for n, folder in enumerate(folders):
            same = sum(other.name == folder.name for other in folders[:n])
            place = f"{folder.name} {same + 1}" if same else folder.name
            for label, mask in load_masks(folder).items():
                self.add(label if len(folders) == 1 else f"{place}/{label}", mask)

    def add(self, name: str, mask: ExpertMask) -> None:
        """Make a mask known.

        Raises:
            CheckpointError: it belongs to another model.
        """
        units, own = self.index.units, self.index.info.model.fingerprint
        if tuple(mask.keep_REE.shape) != (units.groups, units.keys, units.keys) or mask.fingerprint not in (None, own):
            raise CheckpointError(
                f"mask {name!r} was made for another model ({mask.fingerprint}) than the index ({own}); select experts "
                "on this model"
            )
        self._removed[visible(name)] = (mask.keep_REE.flatten(1) < 1).numpy()

    @property
    def names(self) -> list[str]:
        """Names of the known masks."""
        return list(self._removed)

    def counts(self) -> dict[str, list[int]]:
        """Number of experts that each mask removes or attenuates, by routing group."""
        return {name: removed_RN.sum(1).tolist() for name, removed_RN in self._removed.items()}

    def removed(self, name: str) -> NDArray[np.bool_]:
        """Experts that a mask removes or attenuates, (R, N) bool.

        Raises:
            ConfigError: there is no such mask.
        """
        if name not in self._removed:
            raise ConfigError(f"mask {name!r} is not known; choose one of {', '.join(self._removed) or 'none'}")
        return self._removed[name]

    def removed_rows(self, name: str) -> NDArray[np.bool_]:
        """The same for the rows of the table of experts, (R * U,) bool; halves are not in masks."""
        removed_RN, units = self.removed(name), self.index.units
        found_RU = np.zeros((units.groups, units.per_group), bool)
        found_RU[:, : units.pairs] = removed_RN
        return found_RU.reshape(-1)

    def removing(self, unit: Unit) -> list[str]:
        """Names of the masks that remove an expert; a half must be removed as a whole."""
        keys = self.index.units.keys
        place = tuple(slice(None) if key is None else key for key in (unit.i, unit.j))
        return [
            name
            for name, removed_RN in self._removed.items()
            if bool(removed_RN[unit.group].reshape(keys, keys)[place].all())
        ]

    def resolved(self, collection: Collection, browser: Browser) -> NDArray[np.bool_]:
        """The experts of a collection, (R, N) bool.

        Raises:
            ConfigError: a rule, mask or unit is not known, or too many units are named.
        """
        units = self.index.units
        found = np.zeros((units.groups, units.keys, units.keys), bool)
        if len(collection.add) + len(collection.drop) > limits.NAMED or len(collection.rules) > limits.ROWS:
            raise ConfigError(f"a collection names at most {limits.NAMED} experts and {limits.ROWS} rules; use a rule")
        for rule in collection.rules:
            row_X = browser.rows(Query.of(rule))
            group_X, number_X = np.divmod(row_X, units.per_group)
            is_pair_X = number_X < units.pairs
            found.reshape(units.groups, -1)[group_X[is_pair_X], number_X[is_pair_X]] = True
            for row in row_X[~is_pair_X].tolist():
                found[_place(browser.columns.unit(row))] = True
        for name in collection.masks:
            found |= self.removed(name).reshape(found.shape)
        for names, value in ((collection.add, True), (collection.drop, False)):
            for name in names:
                (unit,) = units.parse(name)
                found[_place(unit)] = value
        return found.reshape(units.groups, -1)

    def mask(self, removed_RN: NDArray[np.bool_], notes: dict[str, Any] | None = None) -> ExpertMask:
        """The mask that removes experts, bound to the model of the index."""
        keys = self.index.units.keys
        keep_REE = torch.from_numpy(~removed_RN).view(-1, keys, keys)
        return ExpertMask(keep_REE, {"made_by": "monet view", **(notes or {})}, self.index.info.model.fingerprint)

    def weights(self, removed_RN: NDArray[np.bool_]) -> dict[str, float]:
        """The share of each label's routing weight that a removal takes, 0 to 1, as a mean over routing groups."""
        heads = self.index.info.model.heads
        taken_C = np.zeros(len(self.index.info.data.labels))
        for group, removed_N in enumerate(removed_RN):
            if removed_N.any():
                taken_C += self.index.means(group)[:, : len(removed_N)] @ removed_N / heads
        return dict(zip(self.index.info.data.labels, (taken_C / len(removed_RN)).tolist(), strict=True))

    def path(self, name: str) -> Path:
        """The folder of a new mask.

        Raises:
            ConfigError: the name is not a plain word.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"name {name!r}: use letters, digits, blanks, and the characters _ + -; begin with a letter or a digit"
            )
        return self.out / name.strip()

    def save(
        self, name: str, label: str, removed_RN: NDArray[np.bool_], collection: Collection, overwrite: bool
    ) -> Path:
        """Write a mask as a folder that `monet ablate --masks` reads.

        Args:
            name: name of the folder.
            label: the label whose text the mask is about; `monet ablate` compares its loss with that of the others.
            removed_RN: experts to remove.
            collection: how they were collected, for the record.
            overwrite: replace a mask of this name.

        Raises:
            ConfigError: the name or label is not valid, a mask of another folder has this name, or there is nothing to
                remove.
            FileExistsError: there is a folder of this name, and `overwrite` is false.
        """
        folder, info = self.path(name), self.index.info
        labels = {visible(one): one for one in info.data.labels}
        if label not in labels:
            raise ConfigError(f"label {label!r}: choose one of {', '.join(labels)}")
        if not removed_RN.any():
            raise ConfigError("the collection is empty, so its mask would remove nothing; collect an expert first")
        if name.strip() in self._removed and not folder.exists():
            raise ConfigError(f"name {name.strip()!r} is that of a known mask; choose another name")
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists already")
        provenance = self.index.provenance
        notes = {"label": labels[label], "collection": msgspec.to_builtins(collection), "statistics": provenance}
        mask = self.mask(removed_RN, notes)
        total = removed_RN.size
        summary = {
            "format": "monet-selection/1",
            "rule": "collection",
            "collection": notes["collection"],
            "model_fingerprint": info.model.fingerprint,
            "experts": total,
            "experts_per_group": removed_RN.shape[1],
            "generalists": total - mask.num_removed,
            "labels": {
                labels[label]: {
                    "experts": mask.num_removed,
                    "share": mask.num_removed / total,
                    "experts_per_group": mask.removed_per_group,
                    "tokens": info.tokens[info.data.labels.index(labels[label])],
                }
            },
            "statistics": without_hashes(provenance),
        }
        if folder.exists() and (folder / SUMMARY_NAME).is_file():
            for old in folder.glob("*.safetensors"):
                old.unlink()
        save_masks(folder, {labels[label]: mask}, summary)
        self.add(name.strip(), mask)
        return folder


def _place(unit: Unit) -> tuple[int, Any, Any]:
    i, j = (slice(None) if key is None else key for key in (unit.i, unit.j))
    return unit.group, i, j
