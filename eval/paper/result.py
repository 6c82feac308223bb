"""The comparison of the paper's values with ours, as data and as a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.eval.core.document import Block, Report, Table, Text
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result


@dataclass(frozen=True)
class Row:
    """One published number and our value.

    Args:
        name: name of the number.
        unit: unit of both values.
        published: the paper's value.
        found: our value; None if there is none.
        digits: number of decimals that both are shown with.
        note: why there is no value, or a remark that a reader needs.
    """

    name: str
    unit: str
    published: float
    found: Estimate | None = None
    digits: int = 3
    note: str = ""

    @property
    def value(self) -> float | None:
        """Our value; None if there is none."""
        return None if self.found is None else self.found.value


@dataclass(frozen=True)
class ReproductionResult(Result):
    """A table of the paper, run here.

    Args:
        table: number of the table.
        title: title of the table.
        source: source of the published values.
        paper_model: the model of the published values.
        cautions: reasons against a comparison, one sentence each.
        rows: rows in the paper's order.
        protocol: how our values were made, and what the paper leaves open.
        provenance: model, commands, their results, versions, date.
    """

    FORMAT: ClassVar[str] = "monet-reproduction/2"
    COMMAND: ClassVar[str] = "monet reproduce"

    table: int
    title: str
    source: str
    paper_model: str
    cautions: list[str]
    rows: list[Row]
    protocol: str
    provenance: dict[str, Any]

    @property
    def sentence(self) -> str:
        """A sentence that counts the values that can be compared."""
        found = sum(row.value is not None for row in self.rows)
        return f"Table {self.table}: {found} of {len(self.rows)} published values are compared with ours"

    def report(self) -> Report:
        """One table, and an explanation of our values."""
        blocks: list[Block] = [Text("\n\n".join(self.cautions), caution=True)] if self.cautions else []
        extras = {
            "interval": any(row.found and row.found.low is not None for row in self.rows),
            "note": any(row.note for row in self.rows),
        }
        dropped = {name for name, wanted in extras.items() if not wanted}
        header = ["", "unit", f"paper, {self.paper_model}", "here", "interval", "difference", "note"]
        kept = [column for column, name in enumerate(header) if name not in dropped]
        blocks += [
            Table(
                f"Table {self.table}: {self.title}",
                [header[column] for column in kept],
                [[_cells(row)[column] for column in kept] for row in self.rows],
            ),
            Text(self.protocol, "How it was made"),
            Text(f"Published values: {self.source}.", "Source"),
        ]
        title = f"Table {self.table} of the paper: {self.title}"
        return Report(title, self.sentence, blocks, self.provenance, self.to_json())


def _cells(row: Row) -> list[str]:
    def shown(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign},.{row.digits}f}"

    found = row.found
    interval = "" if found is None or found.low is None else f"[{shown(found.low)}, {shown(found.high)}]"
    difference = None if row.value is None else row.value - row.published
    return [row.name, row.unit, shown(row.published), shown(row.value), interval, shown(difference, "+"), row.note]
