"""Lines of explanations and scores, one file for each run, written line by line and readable while a run continues.

`INDEX/explanations/NAME.jsonl` and `INDEX/scores/NAME.jsonl` have one line for each unit. Next to each file,
`NAME.settings.json` says how it was made. A run that was stopped continues after the last whole line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from monet.errors import CheckpointError, ConfigError
from monet.eval.core.appended import AppendedFile
from monet.files import atomic_write_json
from monet.json_text import parse_json, read_json

EXPLANATIONS, SCORES = "explanations", "scores"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Used:
    """A context that an explainer saw: its window, the token's position there, and the label's document."""

    window: int
    position: int
    label: str
    document: str


@dataclass(frozen=True)
class Explanation:
    """One line of explanations.

    Attributes:
        group, i, j, unit: the unit; i or j is None for a half, and `unit` is its row in the arrays of its group.
        explanation: the text; "" if there is none.
        explainer: tokens, label, server or model.
        model: the model that wrote it; "" for a baseline.
        time: when it was written, UTC.
        contexts: what the explainer saw.
        failed: why there is no explanation; "" if there is one.
    """

    group: int
    i: int | None
    j: int | None
    unit: int
    explanation: str
    explainer: str
    model: str
    time: str
    contexts: list[Used] = field(default_factory=list)
    failed: str = ""


@dataclass(frozen=True)
class Score:
    """One line of scores.

    Attributes:
        group, i, j, unit: the unit.
        scorer: detection, fuzzing, intruder or embedding.
        judge: who answered.
        score: 0 to 1; None if the unit has too few contexts, see `skipped`.
        interval: bootstrap interval of the score over the contexts, low and high.
        n: contexts or sets that were judged.
        failed: answers among them that were missing or could not be read; they count as wrong.
        control_permuted: the same score of the explanation of another unit.
        control_empty: the same score of an empty explanation; None for a scorer that needs no explanation.
        chance: what guessing scores.
        hits, alarms: shares of the activating contexts, and of the others, that the judge accepts; None for a score
            that is no such share.
        rate: share of random excerpts of the text in which the unit is active.
        precision: for detection, at this rate, the share of active excerpts among those that the judge accepts.
        explanation, explainer: what was scored; None for a scorer that needs no explanation.
        skipped: why there is no score; "" if there is one.
    """

    group: int
    i: int | None
    j: int | None
    unit: int
    scorer: str
    judge: str
    score: float | None
    interval: tuple[float, float] | None
    n: int
    failed: int
    control_permuted: float | None
    control_empty: float | None
    chance: float
    hits: float | None = None
    alarms: float | None = None
    rate: float | None = None
    precision: float | None = None
    explanation: str | None = None
    explainer: str | None = None
    skipped: str = ""


Line = TypeVar("Line", Explanation, Score)


def check_name(name: str) -> str:
    """The name of a file of lines.

    Raises:
        ConfigError: it has other characters than letters, digits, dots, hyphens and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: use up to 100 letters, digits, dots, hyphens and underscores")
    return name


def read_lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    """The whole lines of a file, which may still grow; an unfinished last line is left out.

    Raises:
        CheckpointError: the file is missing, or a line is damaged.
    """
    yield from (line for line, _ in _entries(path, kind))


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a file of lines.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    file = settings_path(path)
    try:
        found = read_json(file, CheckpointError)
    except OSError:
        raise CheckpointError(
            f"{file} is missing, so it is not known how {path.name} was made; make it again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is damaged; make {path.name} again")
    return found


def settings_path(path: Path) -> Path:
    """The file of settings that belongs to a file of lines."""
    return path.with_name(f"{path.stem}.settings.json")


class Lines(AppendedFile, Generic[Line]):
    """A file of lines that is open for writing, as a context manager. One process at a time can write.

    Args:
        path: the file; its folder is made.
        kind: `Explanation` or `Score`.
        settings: everything that the lines depend on, JSON-able.
        overwrite: begin again if the file was made with other settings.

    Attributes:
        done: the lines so far, by group and unit.

    Raises:
        ConfigError: another process writes the file, or it was made with other settings.
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path, kind: type[Line], settings: Mapping[str, Any], overwrite: bool = False) -> None:
        super().__init__(path, f"{path} is written by another process; wait for it, or choose --name")
        self._kind, self._settings, self._overwrite = kind, dict(settings), overwrite
        self.done: dict[tuple[int, int], Line] = {}

    def put(self, line: Line) -> None:
        """Append a line. It survives a kill of this process from now on."""
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        self.done[line.group, line.unit] = line

    def _whole_bytes(self) -> int:
        settings = parse_json(msgspec.json.encode(self._settings), "settings")
        if self.path.exists() and self.path.stat().st_size:
            before = read_settings(self.path)
            if before == settings:
                return self._read()
            if not self._overwrite:
                changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
                raise ConfigError(
                    f"{self.path} was made with other settings ({', '.join(changed)}); choose another --name, or "
                    "--overwrite it"
                )
        self.path.write_bytes(b"")
        atomic_write_json(settings_path(self.path), settings)
        return 0

    def _read(self) -> int:
        whole = 0
        for line, end in _entries(self.path, self._kind):
            self.done[line.group, line.unit], whole = line, end
        return whole


def _entries(path: Path, kind: type[Line]) -> Iterator[tuple[Line, int]]:
    """Each whole line, and the place of its end."""
    end = 0
    if not path.is_file():
        raise CheckpointError(f"{path}: unreadable (no such file)")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            where = f"{path}: line {number}"
            try:
                yield msgspec.convert(parse_json(line, where, CheckpointError), kind), end
            except msgspec.ValidationError as error:
                raise CheckpointError(f"{where} is damaged ({error}); make the file again") from None
