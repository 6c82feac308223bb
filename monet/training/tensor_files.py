"""Named tensors in safetensors files of bounded size, with an index where one file is not enough.

The layout follows from names, shapes and data types alone, so every rank comes to the same one and writes its part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monet.errors import CheckpointError
from monet.json_text import read_json

FILE_BYTES = 2 << 30  # a rank holds one file's tensors in host memory while it writes
# many ranks write smaller files, so that none of them waits for a few; below this size that gains nothing
LEAST_BYTES = 256 << 20


class TensorFile(NamedTuple):
    """One file of a layout: its name, the tensors in it, and the rank that writes it."""

    name: str
    tensors: list[str]
    owner: int


def plan(stem: str, tensors: Mapping[str, Tensor], world_size: int = 1, first_owner: int = 0) -> list[TensorFile]:
    """Deal tensors, in their order, to files and files to ranks in turn.

    A file has at most `FILE_BYTES` (or one tensor), with many ranks a rank's share, but no less than `LEAST_BYTES`.

    Args:
        stem: name of the files without ending; several get -00001-of-00002 and so on, as Hugging Face numbers them.
        tensors: shapes and data types are looked at, not content: meta tensors will do.
        world_size: number of ranks.
        first_owner: rank of the first file.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    most = min(FILE_BYTES, max(LEAST_BYTES, sum(sizes.values()) // world_size))
    groups: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    count = len(groups)
    names = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" if count > 1 else f"{stem}.safetensors"
             for n in range(1, count + 1)]  # fmt: skip
    return [
        TensorFile(name, group, (first_owner + place) % world_size)
        for place, (name, group) in enumerate(zip(names, groups, strict=True))
    ]


def write(folder: Path, file: TensorFile, tensors: Mapping[str, Tensor], mode: int) -> None:
    """Write one file of a layout.

    Args:
        mode: permissions of the file: safetensors lets nobody else read what it writes.
    """
    content = {name: tensors[name].detach().cpu().contiguous() for name in file.tensors}
    save_file(content, folder / file.name, metadata={"format": "pt"})
    (folder / file.name).chmod(mode)


def write_index(folder: Path, stem: str, files: list[TensorFile], tensors: Mapping[str, Tensor]) -> None:
    """Write the index of a layout of several files, as Hugging Face reads it; a single file has none."""
    if len(files) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map = {name: file.name for file in files for name in file.tensors}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / index_name(stem)).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def names_of(folder: Path, stem: str) -> list[str]:
    """Names of a layout's files on disk: those of the index, or the single one there is without an index.

    Raises:
        CheckpointError: the index cannot be read, or leads out of the folder.
    """
    index = folder / index_name(stem)
    if not index.is_file():
        return [f"{stem}.safetensors"]
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or (folder / name).is_symlink()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: cannot be read: {error!r}") from None
    if outside:
        raise CheckpointError(f"{index}: refers to {outside[0]!r}, which is not a file of this folder")
    return names


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a layout on disk; each is read when it is asked for, from mapped memory where possible.

    Args:
        folder: where the files lie; none outside it is opened.
        stem: name of the files.
    Raises:
        CheckpointError: an index or file cannot be read, or names what is not in the folder.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder = folder
        self._files: dict[str, safe_open] = {}
        self._place: dict[str, str] = {}
        for name in names_of(folder, stem):
            self._files[name] = self._open(name)
            self._place.update(dict.fromkeys(self._files[name].keys(), name))

    def _open(self, name: str) -> safe_open:
        try:
            return safe_open(self.folder / name, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / name}: cannot be read: {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._place[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)
