"""Renders a report as one self-contained page: no scripts, no addresses, with styles and drawings inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from monet.eval.core.document import Bars, Block, Curve, Dots, Heatmap, Panels, Report, Table, Text
from monet.eval.reporting import common, figures, svg
from monet.files import atomic_write_text
from monet.terminal import clean

NAME = "report.html"


@dataclass(frozen=True)
class Cell:
    """One value of a heat map, as shown on the page.

    Args:
        text: the value; empty if nothing was measured.
        hint: text with the value and its interval.
        sign: "up" or "down", which chooses the colour; "none" for an empty cell.
        share: share of the full colour, 0 to 100.
        own: whether row and column have the same name.
    """

    text: str
    hint: str
    sign: str
    share: int
    own: bool


@dataclass(frozen=True)
class Grid:
    """A heat map as rows of cells; `bars` holds a length from 0 to 100 and a label for each row."""

    heatmap: Heatmap
    rows: Sequence[tuple[str, Sequence[Cell]]]
    scale: str
    with_intervals: Table | None
    bars: Sequence[tuple[int, str]] = ()
    bars_title: str = ""


@dataclass(frozen=True)
class Section:
    """A block in the form that the page needs: `kind` is text, table, heat or curve (any plot)."""

    anchor: str
    kind: str
    block: Block
    table: Table | None = None
    grids: Sequence[Grid] = ()
    drawing: Markup | str = ""


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.html."""
    atomic_write_text(folder / NAME, render(report))
    return [folder / NAME]


def render(report: Report) -> str:
    """Render the page. Names and texts of the report are escaped, so none of them becomes markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.tests["nested"] = _nested
    environment.filters["number_columns"] = common.number_columns
    environment.filters |= {"leaf": _leaf, "entries": _entries}
    sections = [_section(block, number) for number, block in enumerate(report.blocks, start=1)]
    widest = max((_columns(section) for section in sections), default=0)
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        report=report, sections=sections, css=Markup(css), columns=range(2, widest + 1), lines=figures.COLOURS
    )


def _section(block: Block, number: int) -> Section:
    anchor = f"{common.slug(block.title)}-{number}"
    if isinstance(block, Text):
        return Section(anchor, "text", block)
    if isinstance(block, Table):
        return Section(anchor, "table", block, table=block)
    if isinstance(block, (Curve, Dots)):
        with figures.styled():
            drawing = svg.inline(figures.draw(block), f"f{number}", clean(block.title))
        return Section(anchor, "curve", block, table=common.drawn_table(block), drawing=Markup(drawing))
    panels = block if isinstance(block, Panels) else Panels(block.title, [block], note=block.note)
    limit = common.limit_of(panels.panels)
    grids = [
        _grid(heatmap, limit, panels.bars if place == len(panels.panels) else None)
        for place, heatmap in enumerate(panels.panels, start=1)
    ]
    return Section(anchor, "heat", block, grids=grids)


def _grid(heatmap: Heatmap, limit: float, bars: Bars | None) -> Grid:
    digits = common.digits_for(limit)
    rows = []
    for row, name in enumerate(heatmap.rows):
        cells = []
        for column, other in enumerate(heatmap.columns):
            value = common.finite(heatmap.values[row][column])
            if value is None:
                cells.append(Cell("", "not measured", "none", 0, False))
                continue
            share, sign = min(abs(value) / limit, 1.0), "up" if value > 0 else "down"
            hint = f"{name}, {other}: {common.with_interval(heatmap, row, column, digits + 1)} {heatmap.unit}"
            cells.append(Cell(common.signed(value, digits), hint, sign, round(100 * share), name == other))
        rows.append((name, cells))
    longest = max([*bars.values, 1e-9]) if bars else 1.0
    return Grid(
        heatmap,
        rows,
        common.signed(limit, digits),
        None if heatmap.low is None else common.matrix_table(heatmap, digits + 1),
        [(round(100 * value / longest), label) for value, label in zip(bars.values, bars.labels, strict=True)]
        if bars
        else (),
        bars.title if bars else "",
    )


def _columns(section: Section) -> int:
    """Number of columns of the section's widest table."""
    tables = [section.table, *(grid.with_intervals for grid in section.grids)]
    wide = [len(table.header) for table in tables if table is not None]
    return max([*wide, *(len(grid.heatmap.columns) + 1 + bool(grid.bars) for grid in section.grids)], default=0)


def _nested(value: Any) -> bool:
    """Whether a value of the provenance needs its own fold; lists of plain values do not."""
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(map(_nested, value))


def _entries(value: Mapping[str, Any] | Sequence[Any]) -> list[tuple[str, Any]]:
    """A mapping's entries, or a list's with their numbers."""
    if isinstance(value, Mapping):
        return [(str(key), inner) for key, inner in value.items()]
    return [(str(number), inner) for number, inner in enumerate(value, start=1)]


def _leaf(value: Any) -> str:
    """A value of the provenance as text."""
    if value is None or value == [] or value == {}:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_leaf, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
