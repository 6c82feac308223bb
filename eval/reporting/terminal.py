"""Prints the head of a report on the terminal: cautions, the first heat map, the first table, the summary."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from monet.eval.core.document import Heatmap, Panels, Report, Table, Text
from monet.eval.reporting import common
from monet.terminal import markup


def show(report: Report) -> None:
    """Print the head on standard output; the files hold the whole report."""
    console = Console(highlight=False)
    first: dict[type, Heatmap | Table] = {}
    for block in report.blocks:
        shown = block.panels[0] if isinstance(block, Panels) else block
        if isinstance(shown, (Heatmap, Table)):
            first.setdefault(type(shown), shown)
    for block in first.values():
        _print(console, _matrix(console, block) if isinstance(block, Heatmap) else _table(console, block))
    for block in report.blocks:
        if isinstance(block, Text) and block.caution:
            console.print(f"[bold]{_words(block.text)}[/bold]", soft_wrap=True)
    console.print(_words(report.summary), soft_wrap=True)


def _print(console: Console, table: RichTable) -> None:
    """Print whole rows of any width to a file or pipe, and folded rows to a terminal."""
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)


def _words(text: str) -> str:
    return markup(text)


def _new(title: str) -> RichTable:
    return RichTable(title=_words(title), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _matrix(console: Console, heatmap: Heatmap) -> RichTable:
    table = _new(f"{heatmap.title}, {heatmap.unit}")
    table.add_column(_words(heatmap.row_axis), no_wrap=True)
    for name in heatmap.columns:
        table.add_column(_words(name), min_width=5, overflow="fold", justify="right")
    digits = common.digits_for(common.limit_of([heatmap]))
    for name, row in zip(heatmap.rows, heatmap.values, strict=True):
        cells = []
        for column, value in zip(heatmap.columns, row, strict=True):
            shown = "" if value is None or common.finite(value) is None else common.signed(value, digits)
            cells.append(f"[bold]{shown}[/bold]" if name == column else shown)
        table.add_row(_words(name), *cells)
    return table


def _table(console: Console, block: Table) -> RichTable:
    table = _new(block.title)
    for name, number in zip(block.header, common.number_columns(block), strict=True):
        table.add_column(_words(name), justify="right" if number else "left")
    for row in block.rows:
        table.add_row(*map(_words, row))
    return table
