"""A report as data: titled blocks of tables, heat maps, curves, dots and text, which every renderer reads.

Suites build a `Report` from their result. `monet.eval.reporting.command` writes it as HTML, Markdown, PNG and JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: plain words without markup; an empty line begins another paragraph.
        title: heading above it, or empty.
        caution: something that a reader must not miss, such as a result with missing parts.
    """

    text: str
    title: str = ""
    caution: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells. The first column names the row. The other columns hold formatted numbers.

    Args:
        title: what the table shows, with units.
        header: one or two words for each column.
        rows: rows with one cell for each word of the header.
        note: how to read the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Heatmap:
    """A coloured matrix of numbers; zero has the neutral colour.

    Args:
        title: what a cell is.
        rows, columns: names along the sides.
        values: values[row][column]; None if the cell was not measured.
        unit: unit of the values, for example "nats per token" or "points of accuracy".
        row_axis, column_axis: what the rows and columns are.
        note: how to read the heat map.
        low, high: bounds of each value's interval, shaped like `values`; None without intervals.
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
    """Bars for the rows of a heat map, drawn to its right.

    Args:
        title: what a bar is, with its unit.
        values: lengths, at least zero, one for each row.
        labels: text at the ends of the bars.
    """

    title: str
    values: Sequence[float]
    labels: Sequence[str]


@dataclass(frozen=True)
class Panels:
    """Heat maps with the same rows, side by side on one scale.

    Args:
        title: what the heat maps show together.
        panels: at least one heat map; all have equal rows and units.
        bars: bars to the right of the last heat map.
        note: how to read the panels.
    """

    title: str
    panels: Sequence[Heatmap]
    bars: Bars | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a plot. `low` and `high` bound its interval, if it has one."""

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
        x_label, y_label: labels of the axes, with units.
        series: the lines.
        log_x: use a logarithmic horizontal axis.
        note: how to read the plot.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    note: str = ""


@dataclass(frozen=True)
class Marks:
    """One mark for each row of a `Dots`, for example the marks of one model; None if a row was not measured.

    Args:
        name: name of the series.
        values: one value for each row.
        low, high: bounds of the intervals, one for each row; None without an interval.
        colour: number of the colour; series that belong together have the same number.
        strong: draw the marks larger, for a mean of the other series.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    colour: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Dots:
    """Numbers with intervals by row. The series of a row are drawn below each other.

    Args:
        title: what is drawn.
        rows: names of the rows.
        x_label: what the numbers are, with their unit.
        marks: the series.
        row_axis: what the rows are.
        note: how to read the plot.
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
    """Everything that a renderer needs.

    Args:
        title: title of the page.
        summary: one sentence with the finding.
        blocks: blocks in the order of reading.
        provenance: model, masks, data, settings, versions, date; JSON-able.
        numbers: the suite's whole result for report.json, JSON-able.
    """

    title: str
    summary: str
    blocks: Sequence[Block]
    provenance: dict[str, Any]
    numbers: dict[str, Any] = field(default_factory=dict)
