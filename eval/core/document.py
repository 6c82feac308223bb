"""A report as data: titled blocks of tables, heat maps, curves, dots and text, which every renderer reads.

Suites build a `Report` from their result; `monet.eval.reporting.command` writes it as HTML, Markdown, PNG and JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: plain words, no markup; an empty line begins another paragraph.
        title: heading above it, or empty.
        caution: something that a reader must not miss, such as a result with missing parts.
    """

    text: str
    title: str = ""
    caution: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column names the row, the others are numbers already formatted.

    Args:
        title: what the table shows, with units.
        header: one word or two a column.
        rows: as many cells as the header has.
        note: how to read it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Heatmap:
    """A matrix of numbers, coloured; zero is neutral.

    Args:
        title: what a cell is.
        rows, columns: names along the sides.
        values: values[row][column]; None where nothing was measured.
        unit: of the values, e.g. "nats a token" or "points of accuracy".
        row_axis, column_axis: what the sides are.
        note: how to read it.
        low, high: bounds of each value's interval, shaped like `values`; None where there are none.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    unit: str
    row_axis: str = ""
    column_axis: str = ""
    note: str = ""
    low: Sequence[Sequence[float | None]] | None = None
    high: Sequence[Sequence[float | None]] | None = None


@dataclass(frozen=True)
class Bars:
    """A length for each row of a heat map, drawn beside it.

    Args:
        title: what a bar is, with its unit.
        values: from zero up, one a row.
        labels: written at the bars' ends.
    """

    title: str
    values: Sequence[float]
    labels: Sequence[str]


@dataclass(frozen=True)
class Panels:
    """Heat maps of the same rows, side by side on one scale.

    Args:
        title: what they show together.
        panels: at least one; equal rows and units.
        bars: beside the last.
        note: how to read them.
    """

    title: str
    panels: Sequence[Heatmap]
    bars: Bars | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a plot; `low` and `high` bound its interval where there is one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Curve:
    """Lines over one number.

    Args:
        title: what is plotted.
        x_label, y_label: with units.
        series: the lines.
        log_x: logarithmic horizontal axis.
        note: how to read it.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    note: str = ""


@dataclass(frozen=True)
class Marks:
    """One mark a row of a `Dots`, for example of one model; None where nothing was measured.

    Args:
        name: of the series.
        values: one a row.
        low, high: bounds of the intervals, one a row; None without one.
        colour: number of the colour; series that belong together share it.
        strong: drawn larger, for a mean of the others.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    colour: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Dots:
    """Numbers with intervals by row, the series of a row below each other.

    Args:
        title: what is drawn.
        rows: names.
        x_label: of the numbers, with their unit.
        marks: the series.
        row_axis: what the rows are.
        note: how to read it.
    """

    title: str
    rows: Sequence[str]
    x_label: str
    marks: Sequence[Marks]
    row_axis: str = ""
    note: str = ""


Block = Text | Table | Heatmap | Panels | Curve | Dots


@dataclass(frozen=True)
class Report:
    """What a renderer needs.

    Args:
        title: of the page.
        summary: one sentence: what was found.
        blocks: in the order of reading.
        provenance: model, masks, data, settings, versions, date; JSON-able.
        numbers: the suite's whole result, JSON-able, for report.json.
    """

    title: str
    summary: str
    blocks: Sequence[Block]
    provenance: dict[str, Any]
    numbers: dict[str, Any] = field(default_factory=dict)
