"""Data sets that must not open other places than the user named: cards with addresses, columns that name files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monet.errors import DataError

_CARD = "README.md"
_YAML = ".huggingface.yaml"


def refuse_addresses(folder: Path) -> None:
    """Refuse a local folder whose description names an address, which `datasets` would open.

    Args:
        folder: a local data set; a file is passed over.
    Raises:
        DataError: names the description and the address.
    """
    if (card := folder / _CARD).is_file():
        from huggingface_hub.repocard import metadata_load

        content: Any = metadata_load(card) or {}
        for key in ("configs", "dataset_info"):
            _refuse(card, content.get(key))
    if (more := folder / _YAML).is_file() and "://" in more.read_text(encoding="utf-8", errors="replace"):
        raise DataError(f"{more}: names an address, and a local data set opens none; edit the file")


def plain_columns(dataset: Any, names: Iterable[str | None]) -> Any:
    """The data set with only these columns, so that no other is decoded; decoding an image opens what its row names.

    Args:
        dataset: a `datasets.IterableDataset` that knows its columns.
        names: columns, or paths such as "data.text"; those that are absent are passed over.
    Raises:
        DataError: one of them is no plain value, but, for instance, an image.
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
        raise DataError(f"{card}: names the address {value!r}, and a local data set opens none; edit the card")
