"""Checks that a local data set opens nothing else: no addresses in its card, no columns that name files to decode."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monet.errors import DataError

_CARD = "README.md"
_YAML = ".huggingface.yaml"


def refuse_addresses(folder: Path) -> None:
    """Refuse a local folder whose description contains an address, because `datasets` would open it.

    Args:
        folder: a local data set; a file is skipped.
    Raises:
        DataError: the description contains an address; names both.
    """
    if (card := folder / _CARD).is_file():
        from huggingface_hub.repocard import metadata_load

        content: Any = metadata_load(card) or {}
        for key in ("configs", "dataset_info"):
            _refuse(card, content.get(key))
    if (more := folder / _YAML).is_file() and "://" in more.read_text(encoding="utf-8", errors="replace"):
        raise DataError(f"{more}: contains an address, but a local data set must not open one; edit the file")


def plain_columns(dataset: Any, names: Iterable[str | None]) -> Any:
    """Select these columns, so that no other column is decoded; decoding an image opens the file that its row names.

    Args:
        dataset: a `datasets.IterableDataset` that knows its columns.
        names: columns, or paths such as "data.text"; absent columns are ignored.
    Raises:
        DataError: a column does not hold plain values but, for example, images.
    """
    from datasets.features.features import require_decoding

    wanted = {part for name in names if name for part in (name, name.split(".")[0])}
    columns = [name for name in dataset.column_names if name in wanted]
    for name in columns if dataset.features else []:
        if require_decoding(dataset.features[name]):
            raise DataError(f"column {name!r} is declared as {type(dataset.features[name]).__name__}, not as text")
    return dataset.select_columns(columns)


def _refuse(card: Path, value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            _refuse(card, inner)
    elif isinstance(value, str) and "://" in value:
        raise DataError(f"{card}: contains the address {value!r}, but a local data set must not open it; edit the card")
