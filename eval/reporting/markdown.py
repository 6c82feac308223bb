"""Renders a report as Markdown, for repositories and terminals; figures are linked, not embedded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import assert_never

from monet.eval.core.document import Block, Curve, Dots, Heatmap, Panels, Report, Table, Text
from monet.eval.reporting import common
from monet.files import atomic_write_text
from monet.terminal import clean

NAME = "report.md"


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.md."""
    atomic_write_text(folder / NAME, render(report))
    return [folder / NAME]


def render(report: Report) -> str:
    """Render the whole report; figures have the names of `monet.eval.reporting.png`."""
    names = {id(block): name for name, block in common.figures_of(report)}
    parts = [f"# {_words(report.title)}", _words(report.summary)]
    for block in report.blocks:
        parts += _block(block, names.get(id(block), ""))
    parts += ["## Provenance", *_provenance(report.provenance)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _block(block: Block, figure: str) -> list[str]:
    heading = f"## {_words(block.title)}" if block.title else ""
    if isinstance(block, Text):
        paragraphs = [_words(" ".join(part.split())) for part in block.text.split("\n\n")]
        return [heading, *(f"**{part}**" if block.caution else part for part in paragraphs)]
    if isinstance(block, Table):
        return [heading, _table(block), _words(block.note)]
    drawn = f"![{_words(block.title)}]({figure})"
    if isinstance(block, (Curve, Dots)):
        return [heading, drawn, _words(block.note), _table(common.drawn_table(block))]
    if isinstance(block, Heatmap):
        return [heading, drawn, _words(block.note), _matrix(block, common.limit_of([block]))]
    if isinstance(block, Panels):
        limit = common.limit_of(block.panels)
        tables = [part for panel in block.panels for part in (f"### {_words(panel.title)}", _matrix(panel, limit))]
        return [heading, drawn, _words(block.note), *tables]
    assert_never(block)


def _matrix(heatmap: Heatmap, limit: float) -> str:
    # One digit more than in the picture, because intervals may be narrow.
    return "\n\n".join(filter(None, (_table(common.matrix_table(heatmap, common.digits_for(limit) + 1)),
                                     f"Unit: {_words(heatmap.unit)}.")))  # fmt: skip


def _words(text: str) -> str:
    """Escape text, so that Markdown and HTML find no markup in it."""
    text = clean(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    return re.sub(r"[*`\[\]|]|(?<!\w)_|_(?!\w)|^[#>+\-]", r"\\\g<0>", text)


def _table(table: Table) -> str:
    numbers = common.number_columns(table)
    rule = ["---:" if number else "---" for number in numbers]
    rows = [[_cell(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def _cell(text: str) -> str:
    """Escape a cell. Intervals keep their brackets and signs, which have no meaning in a Markdown table."""
    return re.sub(r"\\([\[\]+\-](?!\())", r"\1", _words(text))


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """Plain values as a table, and nested values folded below it."""
    plain, deep = {}, {}
    for key, value in provenance.items():
        if isinstance(value, Mapping) and not any(isinstance(inner, (Mapping, list)) for inner in value.values()):
            plain |= {f"{key}: {name}": inner for name, inner in value.items()}
        elif isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value)):
            deep[key] = value
        else:
            plain[key] = value
    rows = [[str(key), value if isinstance(value, str) else json.dumps(value)] for key, value in plain.items()]
    if not deep:
        return [_table(Table("", ["what", "value"], rows))]
    folded = json.dumps(deep, indent=2, ensure_ascii=False).replace("&", "&amp;").replace("<", "&lt;")
    return [
        _table(Table("", ["what", "value"], rows)) if rows else "",
        f"<details><summary>{_words(', '.join(deep))}</summary>\n\n<pre>\n{folded}\n</pre>\n\n</details>",
    ]
