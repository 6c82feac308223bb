"""Reports with every kind of block, and with names that no renderer may interpret as markup."""

from monet.eval.core.document import Bars, Curve, Dots, Heatmap, Marks, Panels, Report, Series, Table, Text

HOSTILE = "<script>alert(1)</script>"
NAMES = [HOSTILE, "$a_1$ & \"b\" 'c'", "[red]x[/red] | y", "*_`~# \\ {{ 7 * 7 }}", "naïve 日本 \x1b[31m\x00", "_hidden"]


def heatmap(**changes) -> Heatmap:
    size = range(len(NAMES))
    values: list[list[float | None]] = [[0.9 if i == j else -0.02 * (i + j) for j in size] for i in size]
    values[0][1], values[1][2], values[2][0] = None, float("nan"), -0.0001
    bounds = {
        "low": [[None if value is None else value - 0.1 for value in row] for row in values],
        "high": [[None if value is None else value + 0.1 for value in row] for row in values],
    }
    fields = {"rows": NAMES, "columns": NAMES, "values": values, "unit": "nats per token", "row_axis": "removed of",
              "column_axis": "asked of", "note": "A heat map's note.", **bounds}  # fmt: skip
    return Heatmap("Heat " + HOSTILE, **{**fields, **changes})


def curve() -> Curve:
    x = [0.0, 1.0, 4.1, 14.4]
    series = [Series(name, x, [n + 0.1 * v for v in x], [n - 0.3] * 4, [n + 2.0] * 4) for n, name in enumerate(NAMES)]
    return Curve("Curve " + HOSTILE, "experts removed, %", f"toxicity {NAMES[1]}", series, note="A curve's note.")


def dots() -> Dots:
    values: list[list[float | None]] = [[0.1 * row - series for row in range(len(NAMES))] for series in range(10)]
    values[0][1], values[1][2] = None, float("nan")

    def moved(row, by):
        return [None if value is None else value + by for value in row]

    marks = [
        Marks(NAMES[n % len(NAMES)], row, moved(row, -0.2), moved(row, 0.3), colour=n % 3, strong=n == 9)
        for n, row in enumerate(values)
    ]
    marks[2] = Marks("without intervals", values[2], [None] * len(NAMES), [None] * len(NAMES))
    return Dots("Dots " + HOSTILE, NAMES, f"loss {NAMES[1]}", marks, "removed of", "Dots' note.")


def everything() -> Report:
    panels = Panels(
        "Panels " + HOSTILE,
        [heatmap(), heatmap(low=None, high=None)],
        Bars("share, %", [float(n) for n in range(len(NAMES))], [f"{n} {HOSTILE}" for n in range(len(NAMES))]),
        "Panels' note.",
    )
    blocks = [
        Text(f"A caution {HOSTILE}.\n\nIts second paragraph.", caution=True),
        Text("Plain words.", title="Text " + HOSTILE),
        heatmap(),
        panels,
        Table(
            "Table " + HOSTILE, ["name", *NAMES], [[name, *(str(n) for n in range(6))] for name in NAMES], "Its note."
        ),
        Table("Words", ["name", "reason"], [["a" * 60, "a long reason why nothing was found here"]]),
        Table("No rows", ["name", "value"], []),
        curve(),
        Curve("Nothing measured", "x", "y", []),
        dots(),
        Dots("Nothing compared", [], "x", []),
    ]
    provenance = {
        "date": "2026-01-01", "held_out": True, "nothing": None, "seeds": [0, 1], HOSTILE: HOSTILE,
        "data": {"split": "evaluate"}, "masks": {HOSTILE: {"parts": [{"source": HOSTILE}]}}, "empty": {},
    }  # fmt: skip
    return Report("Title " + HOSTILE, "Summary " + HOSTILE, blocks, provenance, {"format": "none/1"})
