"""Functions that the renderers share: formatted numbers, names of files, and columns that hold numbers."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from monet.eval.core.document import Curve, Dots, Heatmap, Marks, Panels, Report, Table

if TYPE_CHECKING:
    from monet.eval.core.estimate import Estimate

Drawn = Curve | Dots
Figure = Heatmap | Panels | Drawn
Matrix = Sequence[Sequence[float | None]]
# The text of a cell without a number.
NOTHING = "-"

_NUMBER = re.compile(r"[+\-−±<>~]?\s?[\d.,]+(e[+-]?\d+)?\s?%?")


def finite(value: float | None) -> float | None:
    """The number, or None in place of NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


def values_of(heatmaps: Iterable[Heatmap]) -> list[float]:
    """Every measured number."""
    found = (finite(value) for one in heatmaps for row in one.values for value in row)
    return [value for value in found if value is not None]


def limit_of(heatmaps: Iterable[Heatmap]) -> float:
    """The largest absolute value, at which the colour scale ends; 1 if all values are zero."""
    return max(map(abs, values_of(heatmaps)), default=0.0) or 1.0


def digits_for(limit: float) -> int:
    """Number of decimals that shows about three digits of the largest value."""
    return 0 if limit >= 100 else 1 if limit >= 10 else 2 if limit >= 0.1 else 3


def signed(value: float, digits: int) -> str:
    """Format a number with its sign; a negative number that rounds to zero keeps its minus: "-0.000"."""
    return f"{value + 0.0:+.{digits}f}"


def bracketed(value: float, low: float, high: float, digits: int = 3) -> str:
    """Format a signed value with its interval in brackets."""
    return f"{signed(value, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def estimated(estimate: Estimate | None, digits: int = 3, *, sign: bool = False, scale: float = 1.0) -> str:
    """Format a value with its interval in brackets, if it has one; None becomes a dash.

    Args:
        estimate: value with its interval.
        digits: number of decimals.
        sign: also write a plus sign.
        scale: factor of the numbers, for example 100 for percentage points.
    """
    if estimate is None:
        return NOTHING

    def word(value: float) -> str:
        return signed(scale * value, digits) if sign else f"{scale * value:.{digits}f}"

    if estimate.low is None or estimate.high is None:
        return word(estimate.value)
    return f"{word(estimate.value)} [{word(estimate.low)}, {word(estimate.high)}]"


def with_interval(heatmap: Heatmap, row: int, column: int, digits: int) -> str:
    """A cell's value with its interval in brackets; empty if nothing was measured."""
    value = finite(heatmap.values[row][column])
    if value is None:
        return ""
    low, high = (None if bound is None else finite(bound[row][column]) for bound in (heatmap.low, heatmap.high))
    return signed(value, digits) if low is None or high is None else bracketed(value, low, high, digits)


def matrix_table(heatmap: Heatmap, digits: int) -> Table:
    """A heat map as a table of text, with intervals."""
    corner = " \\ ".join(filter(None, (heatmap.row_axis, heatmap.column_axis)))
    rows = [
        [name, *(with_interval(heatmap, row, column, digits) for column in range(len(heatmap.columns)))]
        for row, name in enumerate(heatmap.rows)
    ]
    return Table(heatmap.title, [corner, *heatmap.columns], rows)


def drawn_table(block: Drawn) -> Table:
    """The numbers of a plot as a table of text."""
    return _dots_table(block) if isinstance(block, Dots) else _curve_table(block)


def _dots_table(dots: Dots) -> Table:
    found = (finite(value) for series in dots.marks for value in series.values)
    digits = digits_for(max((abs(value) for value in found if value is not None), default=1.0)) + 1

    def cell(series: Marks, row: int) -> str:
        value, low, high = (finite(of[row]) for of in (series.values, series.low, series.high))
        if value is None:
            return NOTHING
        return signed(value, digits) if low is None or high is None else bracketed(value, low, high, digits)

    rows = [[name, *(cell(series, row) for series in dots.marks)] for row, name in enumerate(dots.rows)]
    return Table(f"{dots.title}: {dots.x_label}", [dots.row_axis, *(series.name for series in dots.marks)], rows)


def _curve_table(curve: Curve) -> Table:
    rows = []
    for series in curve.series:
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            bounds = [None if bound is None else bound[place] for bound in (series.low, series.high)]
            interval = "" if None in bounds else f" [{bounds[0]:.4g}, {bounds[1]:.4g}]"
            rows.append([series.name, f"{x:.4g}", f"{y:.4g}{interval}"])
    return Table(curve.title, ["line", curve.x_label, curve.y_label], rows)


def number_columns(table: Table) -> list[bool]:
    """For each column, whether its cells are numbers, perhaps with an interval; renderers right-align such columns."""

    def is_number(cell: str) -> bool:
        words = re.findall(r"[^\W\d_]{3,}", cell)
        return cell in ("", "-", "–", "—") or (_NUMBER.match(cell) is not None and len(words) < 2)

    return [
        column > 0 and all(is_number(row[column].strip()) for row in table.rows) for column in range(len(table.header))
    ]


def slug(text: str, longest: int = 48) -> str:
    """A name for files and anchors: lower-case letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:longest].strip("-") or "block"


def figures_of(report: Report) -> list[tuple[str, Figure]]:
    """Every figure of a report, with the name of its file."""
    drawn = [block for block in report.blocks if isinstance(block, (Heatmap, Panels, Curve, Dots))]
    return [(f"figure-{number:02d}-{slug(block.title)}.png", block) for number, block in enumerate(drawn, start=1)]
