"""index.json: what an index was made from, with which settings, and its files with their hashes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
from typing_extensions import Self

from monet.errors import CheckpointError
from monet.eval.index.units import Units
from monet.files import atomic_write_json, manifest_entries
from monet.json_text import read_json

FORMAT = "monet-index/1"
INFO = "index.json"
TOP, SAMPLES, COUNTS, TOKENS = "top.safetensors", "samples.safetensors", "counts.safetensors", "tokens.safetensors"
TOKEN_COUNTS = "token_counts.safetensors"
EXPERTS, WINDOWS, TOKENIZER = "experts.parquet", "windows.parquet", "tokenizer"


@dataclass(frozen=True)
class ModelNote:
    """The model that routed.

    Attributes:
        name: folder or hub name, in the user's words.
        fingerprint: see `model.fingerprint()`.
        weights: SHA-256 of configuration and weights.
        stored_mask: digest of the mask that is stored in the model; "none" without one.
        dtype, device: precision and kind of device of the pass.
        groups, keys, heads, vocabulary: R, E, H, V.
        num_layers: L.
        layers: number of the first layer of each routing group.
        last_layers: number of its last Monet layer; an index without it has no dense layers after a group.
    """

    name: str
    fingerprint: str
    weights: str
    stored_mask: str
    dtype: str
    device: str
    groups: int
    keys: int
    heads: int
    vocabulary: int
    num_layers: int
    layers: list[int]
    last_layers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class DataNote:
    """The text.

    Attributes:
        folder: folder of `monet data prepare`, in the user's words; "" for text in memory.
        fingerprint: identifies the windows; see `LabelledData.fingerprint`.
        description: see `LabelledData.description`.
        labels: names along C.
    """

    folder: str
    fingerprint: str
    description: dict[str, Any]
    labels: list[str]


@dataclass(frozen=True)
class Settings:
    """What was collected.

    Attributes:
        top: Q, contexts of a unit.
        seed: seed of the samples.
        tokens: exact counts each unit's firing tokens; sampled estimates them from the samples.
        exclude_ids, exclude_first: tokens that do not count, see `Exclusion`.
    """

    top: int
    seed: int
    tokens: Literal["exact", "sampled"]
    exclude_ids: list[int]
    exclude_first: int


@dataclass(frozen=True)
class PartNote:
    """Which parts of the text an incomplete index holds: `held` of `count`."""

    held: list[int]
    count: int


@dataclass(frozen=True)
class FileNote:
    """Size and hash of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexInfo:
    """The content of index.json.

    Attributes:
        model, data, settings: see there.
        tokens: counted tokens of each label.
        windows: windows of each label.
        excluded: tokens that were read and not counted.
        text: hashes of the windows, to find common text later (`monet.eval.core.text_overlap`).
        versions: installed packages.
        part: for an index of a part of the text; None for a complete one.
        files: files of the folder, by name.
    """

    model: ModelNote
    data: DataNote
    settings: Settings
    tokens: list[int]
    windows: list[int]
    excluded: int
    text: dict[str, Any]
    versions: dict[str, str]
    part: PartNote | None = None
    files: dict[str, FileNote] = field(default_factory=dict)

    @property
    def units(self) -> Units:
        """The units of the model."""
        return Units(self.model.groups, self.model.keys)

    @property
    def num_tokens(self) -> int:
        """Counted tokens."""
        return sum(self.tokens)

    @property
    def bytes(self) -> int:
        """Size of the files without index.json."""
        return sum(note.bytes for note in self.files.values())

    def save(self, folder: Path) -> None:
        """Hash the files of the folder and write its index.json."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = manifest_entries(folder, [name for name in names if name != INFO])
        content = {"format": FORMAT, **msgspec.to_builtins(self), "files": files}
        atomic_write_json(folder / INFO, content)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the index.json of a folder, and check that its files are there.

        Raises:
            CheckpointError: the folder is no index, is damaged, or was written in another format.
        """
        folder = Path(folder)
        try:
            content = read_json(folder / INFO, CheckpointError)
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is no index: it has no {INFO}; make one with `monet index`") from None
        except OSError as error:
            raise CheckpointError(f"{folder / INFO}: unreadable ({error.strerror})") from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise CheckpointError(f"{folder / INFO}: format {found!r} instead of {FORMAT!r}; run `monet index` again")
        try:
            info = msgspec.convert(content, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise CheckpointError(f"{folder / INFO}: damaged: {error}; run `monet index` again") from None
        for name, note in info.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != note.bytes:
                raise CheckpointError(f"{path} is missing or does not have {note.bytes} bytes; run `monet index` again")
        return info
