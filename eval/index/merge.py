"""Join the indexes of parts of one text: `monet index merge`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from monet.data.preparation.partial_folder import differences
from monet.errors import CheckpointError, ConfigError
from monet.eval.core import text_overlap
from monet.eval.index import info as names
from monet.eval.index.arrays import state_of
from monet.eval.index.build import sizes_of
from monet.eval.index.folder import WorkFolder, identity
from monet.eval.index.info import IndexInfo, PartNote
from monet.eval.index.tables import State
from monet.eval.index.tokens import TokenTexts
from monet.eval.index.write import merged, write_index


def merge_indexes(folders: Sequence[Path], out: Path, *, overwrite: bool = False) -> IndexInfo:
    """Join indexes of parts; one routing group of all parts is in memory at a time.

    Args:
        folders: folders of indexes of parts.
        out: folder to make.
        overwrite: replace an index with other content.

    Raises:
        ConfigError: fewer than two folders, or `out` holds something else.
        CheckpointError: a folder is no index of a part, two hold the same part, or they differ in model, text or
            settings.
    """
    if len(folders) < 2:
        raise ConfigError(f"{len(folders)} index to merge; name two or more: monet index merge A B --out C")
    parts = [IndexInfo.load(folder) for folder in folders]
    held, count = _held(folders, parts)
    text = text_overlap.Collected()
    for part in parts:
        text.join(part.text)
    info = dataclasses.replace(
        parts[0],
        tokens=[sum(column) for column in zip(*(part.tokens for part in parts), strict=True)],
        windows=[sum(column) for column in zip(*(part.windows for part in parts), strict=True)],
        excluded=sum(part.excluded for part in parts),
        text=text.signature().notes(),
        part=None if len(held) == count else PartNote(held, count),
        files={},
    )
    with WorkFolder(out, info, {}, overwrite) as work:
        if work.finished is None:
            windows = [pq.read_table(folder / names.WINDOWS) for folder in folders]
            tokenizer = TokenTexts.load(folders[0] / names.TOKENIZER).tokenizer
            with work.publishing() as folder:
                write_index(folder, info, _groups(folders, info), windows, tokenizer)
    return IndexInfo.load(out)


def _groups(folders: Sequence[Path], info: IndexInfo) -> Iterator[State]:
    sizes = sizes_of(info)
    for group in range(info.model.groups):
        yield merged(partial(state_of, folder, group, sizes) for folder in folders)


def _held(folders: Sequence[Path], parts: Sequence[IndexInfo]) -> tuple[list[int], int]:
    """The parts that the folders hold together, and the number of all parts."""
    held: dict[int, Path] = {}
    first = parts[0]
    for folder, info in zip(folders, parts, strict=True):
        if info.part is None:
            raise CheckpointError(f"{folder} is complete; merge indexes that were made with --part")
        mine, theirs = (identity(dataclasses.replace(one, part=None)) for one in (first, info))
        found = list(differences(mine, theirs))
        if first.part is not None and info.part.count != first.part.count:
            found.append(f"number of parts: {first.part.count} there, {info.part.count} here")
        if found:
            raise CheckpointError(
                f"{folder} does not fit {folders[0]} ({'; '.join(found[:3])}); index all parts with the same command"
            )
        for number in info.part.held:
            if number in held:
                raise CheckpointError(f"{held[number]} and {folder} both hold part {number}; merge different parts")
            held[number] = folder
    assert first.part is not None
    return sorted(held), first.part.count
