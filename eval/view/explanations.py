"""Explanations of experts and their scores: the files `explanations/NAME.jsonl` and `scores/NAME.jsonl` of an index.

Each line is about one unit. The page reads the keys that it shows and leaves others out. A last line without an end is
left out: another process may be writing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from monet.errors import DataError
from monet.eval.index.units import Units
from monet.eval.view.query import SCORES
from monet.eval.view.visible import visible
from monet.json_text import parse_json

pc: Any = pyarrow.compute  # it makes its functions when it is imported

FOLDERS = ("explanations", "scores")
_LINE = 1 << 20


class Explanation(msgspec.Struct):
    """What someone or something says about a unit; `failed` says why there is no text."""

    group: int
    unit: int
    explanation: str
    explainer: str = ""
    model: str = ""
    failed: str = ""


class Score(msgspec.Struct):
    """How well an explanation fits a unit, next to the same score of other explanations. None where it is not known."""

    group: int
    unit: int
    scorer: str
    score: float | None
    judge: str = ""
    interval: tuple[float, float] | None = None
    n: int = 0
    failed: int = 0
    control_permuted: float | None = None
    control_empty: float | None = None
    chance: float | None = None
    precision: float | None = None
    explanation: str | None = None
    skipped: str = ""


Line = TypeVar("Line", Explanation, Score)


class Explanations:
    """Explanations and scores by row of the table of experts.

    Args:
        units: the units of the index.
        explanations, scores: lines, in the order of the files.
    """

    def __init__(self, units: Units, explanations: Iterable[Explanation] = (), scores: Iterable[Score] = ()) -> None:
        self._units = units
        self._explanations: dict[int, list[Explanation]] = {}
        self._scores: dict[int, list[Score]] = {}
        for one in explanations:
            if one.explanation:
                self._explanations.setdefault(self._row(one), []).append(one)
        for one in scores:
            self._scores.setdefault(self._row(one), []).append(one)
        self._row_X = np.array([row for row, few in self._explanations.items() for _ in few], np.int64)
        texts = [visible(one.explanation) for few in self._explanations.values() for one in few]
        self._text_X = pa.array(texts, pa.string())

    @classmethod
    def read(cls, folder: Path, units: Units) -> Explanations:
        """Read the files of an index.

        Raises:
            DataError: a line is damaged, or names a unit that the model does not have.
        """
        names, scored = (sorted((folder / name).glob("*.jsonl")) for name in FOLDERS)
        return cls(units, _lines(names, Explanation), _lines(scored, Score))

    def __len__(self) -> int:
        return len(self._explanations)

    def text(self, row: int) -> str | None:
        """The first explanation of a row; None without one."""
        few = self._explanations.get(row)
        return few[0].explanation if few else None

    def texts(self, row: int) -> list[str]:
        """All explanations of a row."""
        return [one.explanation for one in self._explanations.get(row, [])]

    def of(self, row: int) -> dict[str, Any]:
        """Explanations of a row with their scores, and the scores that belong to none of them, JSON-able."""
        scores = self._scores.get(row, [])
        found, used = [], set()
        for one in self._explanations.get(row, []):
            own = [n for n, score in enumerate(scores) if score.explanation == one.explanation]
            used |= set(own)
            found.append({**msgspec.to_builtins(one), "scores": [msgspec.to_builtins(scores[n]) for n in own]})
        others = [msgspec.to_builtins(score) for n, score in enumerate(scores) if n not in used]
        return {"explanations": found, "scores": others}

    def columns(self, rows: int) -> dict[str, NDArray[np.float32]]:
        """The best score of each row, by scorer, (rows,) float32; NaN without one. Scorers without a score are absent.

        Args:
            rows: number of rows.
        """
        found: dict[str, NDArray[np.float32]] = {}
        for row, few in self._scores.items():
            for one in few:
                if one.score is not None and one.scorer in SCORES:
                    column = found.setdefault(one.scorer, np.full(rows, np.nan, np.float32))
                    column[row] = np.fmax(column[row], one.score)
        return found

    def containing(self, text: str, rows: int) -> NDArray[np.bool_]:
        """Which of all rows have an explanation that contains a text, (rows,) bool; upper and lower case are equal."""
        found = np.zeros(rows, bool)
        if len(self._row_X):
            hit_X = pc.match_substring(self._text_X, text, ignore_case=True).to_numpy(zero_copy_only=False)
            found[self._row_X[hit_X.astype(bool)]] = True
        return found

    def _row(self, one: Explanation | Score) -> int:
        if not (0 <= one.group < self._units.groups and 0 <= one.unit < self._units.per_group):
            raise DataError(
                f"a line of explanations or scores names unit {one.unit} of group {one.group}, which does not exist"
            )
        return one.group * self._units.per_group + one.unit


def _lines(paths: Iterable[Path], kind: type[Line]) -> Iterator[Line]:
    for path in paths:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda file=file: file.readline(_LINE + 1), b""), start=1):
                if not line.endswith(b"\n"):
                    if len(line) > _LINE:
                        raise DataError(f"{path}: line {number} is longer than {_LINE} bytes")
                    break
                where = f"{path}: line {number}"
                try:
                    yield msgspec.convert(parse_json(line, where), kind)
                except msgspec.ValidationError as error:
                    raise DataError(f"{where} is damaged ({error}); make the file again") from None
