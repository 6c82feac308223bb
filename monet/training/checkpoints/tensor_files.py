"""Named tensors in safetensors files of bounded size, with an index if there are several files.

The layout depends only on names, shapes and data types, so every rank computes the same layout and writes its part.
"""

from __future__ import annotations

import contextlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from monet.errors import CheckpointError
from monet.json_text import read_json

FILE_BYTES = 2 << 30  # a rank holds one file's tensors in host memory while it writes
# many ranks write smaller files, so that most ranks do not wait for a few; below this size there is no gain
LEAST_BYTES = 256 << 20


class TensorFile(NamedTuple):
    """One file of a layout: its name, the tensors in it, and the rank that writes it."""

    name: str
    tensors: list[str]
    owner: int


def plan(stem: str, tensors: Mapping[str, Tensor], world_size: int = 1, first_owner: int = 0) -> list[TensorFile]:
    """Assign tensors to files, in their order, and files to ranks in turn.

    A file has at most `FILE_BYTES` (or one tensor). With many ranks it has a rank's share, but at least `LEAST_BYTES`.

    Args:
        stem: name of the files without suffix; several files get -00001-of-00002 and so on, as Hugging Face does.
        tensors: only shapes and data types are used, so meta tensors are enough.
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
        mode: permissions of the file; by default, safetensors writes files that other users cannot read.
    """
    content = {name: tensors[name].detach().cpu().contiguous() for name in file.tensors}
    save_file(content, folder / file.name, metadata={"format": "pt"})
    (folder / file.name).chmod(mode)


def write_index(folder: Path, stem: str, files: list[TensorFile], tensors: Mapping[str, Tensor]) -> None:
    """Write the index of a layout of several files in Hugging Face's format; a single file has none."""
    if len(files) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        weight_map = {name: file.name for file in files for name in file.tensors}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / index_name(stem)).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def names_of(folder: Path, stem: str) -> list[str]:
    """Return the names of a layout's files on disk: those in the index, or the single file if there is no index.

    Raises:
        CheckpointError: the index cannot be read, or names a file outside the folder.
    """
    places = _indexed(folder, stem)
    names = [f"{stem}.safetensors"] if places is None else sorted(set(places.values()))
    for name in names:
        _refuse_outside(folder, name, stem)
    return names


def _indexed(folder: Path, stem: str) -> dict[str, str] | None:
    """Return the name of the file of each tensor, from the index; None without an index."""
    index = folder / index_name(stem)
    try:
        if not index.is_file():
            return None
        places = read_json(index)["weight_map"]
        return {str(tensor): str(name) for tensor, name in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: cannot be read: {error!r}") from None


def _refuse_outside(folder: Path, name: str, stem: str) -> None:
    if Path(name).name != name or (folder / name).is_symlink():
        raise CheckpointError(f"{folder / index_name(stem)}: refers to {name!r}, which is not a file of this folder")


class Source(Mapping[str, Tensor]):
    """Named tensors that can be read partially."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading its content."""

    @abstractmethod
    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Read elements `start` to `stop` of a flattened tensor, fewer if it ends earlier, and nothing else."""


class StoredTensors(Source):
    """The tensors of a layout on disk; each is read on access, from mapped memory if possible.

    A file is opened on the first access to one of its tensors.

    Args:
        folder: folder of the files; no file outside it is opened.
        stem: name of the files.
    Raises:
        CheckpointError: here or on access: an index or file cannot be read, or names a file that is not in the
            folder.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self.stem = folder, stem
        self._files: dict[str, safe_open] = {}
        places = _indexed(folder, stem)
        if places is None:
            name = f"{stem}.safetensors"
            places = dict.fromkeys(self._file(name).keys(), name)
        self._place = places

    def _file(self, name: str) -> safe_open:
        if name not in self._files:
            _refuse_outside(self.folder, name, self.stem)
            try:
                self._files[name] = safe_open(self.folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder / name}: cannot be read: {error}") from None
        return self._files[name]

    def __getitem__(self, name: str) -> Tensor:
        with self._file_of(name) as file:
            return file.get_tensor(name)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        with self._file_of(name) as file:
            return tuple(file.get_slice(name).get_shape())

    @override
    def part(self, name: str, start: int, stop: int) -> Tensor:
        with self._file_of(name) as file:
            rows = file.get_slice(name)
            if not (shape := rows.get_shape()):
                return file.get_tensor(name).flatten()[start:stop]
            row = max(1, math.prod(shape[1:]))
            first, last = min(start // row, shape[0]), min(-(-stop // row), shape[0])
            return rows[first:last].flatten()[start - first * row : stop - first * row]

    @contextlib.contextmanager
    def _file_of(self, name: str) -> Iterator[safe_open]:
        place = self._place[name]
        file = self._file(place)
        try:
            yield file
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / place}: cannot be read: {error}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._place  # the default of a mapping would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)
