"""An ablation result for people: tables on the terminal and in Markdown, a heat map, and the numbers as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.results import AblationResult, Estimate
from monet.files import atomic_path, atomic_write_json, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JSON_NAME, MARKDOWN_NAME, FIGURE_NAME = "report.json", "report.md", "heatmap.png"


def _signed(value: float, digits: int = 2) -> str:
    """With sign, and without a negative zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _estimate(value: float, low: float, high: float) -> str:
    return f"{_signed(value, 3)} [{_signed(low, 3)}, {_signed(high, 3)}]"


def _range(low: float, high: float) -> str:
    return f"{round(low, 2) + 0.0:.2f} to {round(high, 2) + 0.0:.2f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:") -> str:
    """Markdown table; the first column is text, the others are numbers unless `align` says otherwise."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    rule = ["---"] + [align] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:]))


def _verdict_rows(result: AblationResult) -> list[list[str]]:
    return [
        [
            verdict.name,
            _estimate(verdict.target_delta, *verdict.target_interval),
            f"{_signed(verdict.others_max_delta, 3)} ({verdict.others_max_name})",
            _signed(verdict.others_mean_delta, 3),
            _estimate(verdict.random_delta, *verdict.random_interval),
            f"{verdict.experts} ({verdict.share:.1%})",
            "yes" if verdict.passes else f"no: {verdict.reason}",
        ]
        for verdict in result.domains
    ]


_VERDICT_HEADER = ["removed", "target", "most of others", "mean of others", "random, on target", "experts", "passes"]


def print_result(result: AblationResult) -> None:
    """Print the matrix of loss increases and the verdicts on standard output, 80 columns wide for six domains."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    names = [baseline.name for baseline in result.evaluated]
    console = Console(highlight=False)
    # A file gets whole column names; a terminal gets folded ones, and whole numbers however narrow it is.
    columns = [7 if console.is_terminal else max(7, len(name) + 2) for name in names]
    console.width = max(console.width, max(len(verdict.name) for verdict in result.domains) + sum(columns) + 3)
    matrix = Table(
        title="increase of mean loss, nats a token, by evaluated domain",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    matrix.add_column("removed", no_wrap=True)
    for name in names:
        matrix.add_column(escape(name), min_width=5, overflow="fold", justify="right")
    for verdict, row in zip(result.domains, result.delta, strict=True):
        cells = [
            f"[bold]{_signed(cell.value)}[/bold]" if name == verdict.name else _signed(cell.value)
            for cell, name in zip(row, names, strict=True)
        ]
        matrix.add_row(escape(verdict.name), *cells)
    level = f"{result.provenance['bootstrap']['confidence']:.0%}"
    verdicts = Table(
        *("removed", f"itself, {level}", "others at most", f"random, {level}", "experts", "passes"),
        title="each domain under its own mask, beside random masks of equal size",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for verdict in result.domains:
        verdicts.add_row(
            escape(verdict.name),
            _range(*verdict.target_interval),
            f"{_signed(verdict.others_max_delta)} {escape(verdict.others_max_name)}",
            _range(*verdict.random_interval),
            f"{verdict.share:.1%}",
            "yes" if verdict.passes else "no",
        )
    console.print(matrix, verdicts)
    for verdict in result.domains:
        if not verdict.passes:
            console.print(f"{escape(verdict.name)} does not pass: {escape(verdict.reason)}", soft_wrap=True)
    console.print(result.sentence, soft_wrap=True)


_ORIGIN = {
    True: "The masks were chosen on another split, or on text prepared apart from this.",
    False: "**The masks were chosen on the text they are evaluated on**, which flatters them.",
    None: "**It is not recorded what text the masks were chosen on**; if it is this one, that flatters them.",
}


def markdown(result: AblationResult) -> str:
    """The whole report as Markdown; the figure is named, not embedded."""
    bootstrap = result.provenance["bootstrap"]
    names = [baseline.name for baseline in result.evaluated]
    level = f"{bootstrap['confidence']:.0%}"

    def matrix(rows: Sequence[Sequence[Estimate | None]]) -> str:
        return _table(
            ["removed \\ evaluated", *names],
            [
                [verdict.name, *("" if cell is None else _estimate(cell.value, cell.low, cell.high)
                                 for cell in row)]
                for verdict, row in zip(result.domains, rows, strict=True)
            ],
        )  # fmt: skip

    groups = range(len(result.domains[0].experts_per_group))
    provenance = result.provenance
    parts = [
        "# Knowledge removal",
        f"{sum(verdict.passes for verdict in result.domains)} of {len(result.domains)} masks pass: the domain whose "
        "experts were removed lost more than any other, and more than under random masks that remove as many experts "
        "of every routing group.",
        f"![increase of mean loss]({FIGURE_NAME})",
        "All increases are of the mean next-token loss, in nats a token. In brackets: "
        f"{level} bootstrap intervals over {bootstrap['unit']}s ({bootstrap['resamples']} draws, paired before and "
        "after removal). An interval of random masks is that of one such mask: it holds the spread over masks "
        f"(seeds {', '.join(map(str, provenance['random_seeds']))}) and over {bootstrap['unit']}s.",
        _ORIGIN[result.provenance["held_out"]],
        "## Verdicts",
        _table(_VERDICT_HEADER, _verdict_rows(result)),
        "## Loss increase by domain",
        matrix(result.delta),
        "## Loss increase under random masks of equal size",
        matrix(result.random),
        "## Perplexity by domain",
        _table(
            ["removed \\ evaluated", *names],
            [
                ["nothing", *(f"{baseline.perplexity:.2f}" for baseline in result.evaluated)],
                *(
                    [verdict.name, *(f"{value:.2f}" for value in row)]
                    for verdict, row in zip(result.domains, result.perplexity, strict=True)
                ),
            ],
        ),
        "## Text evaluated on",
        _table(
            ["domain", "mean loss", "perplexity", "tokens", "windows", "documents"],
            [
                [
                    baseline.name,
                    f"{baseline.loss.value:.3f} [{baseline.loss.low:.3f}, {baseline.loss.high:.3f}]",
                    f"{baseline.perplexity:.2f}",
                    str(baseline.tokens),
                    str(baseline.windows),
                    str(baseline.documents),
                ]
                for baseline in result.evaluated
            ],
        ),
        "## Experts removed",
        _table(
            ["domain", "all", "share", *(f"group {group}" for group in groups)],
            [
                [verdict.name, str(verdict.experts), f"{verdict.share:.2%}", *map(str, verdict.experts_per_group)]
                for verdict in result.domains
            ],
        ),
        "## Provenance",
        _table(
            ["what", "value"],
            [
                ["model", f"`{provenance['model_fingerprint']}`"],
                ["data", f"`{provenance['data_fingerprint']}`"],
                *([name, f"`{value}`"] for name, value in provenance["data"].items()),
                *([name, f"`{value}`"] for name, value in provenance["versions"].items()),
                ["date", provenance["date"]],
            ],
            align="---",
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _heat(axes: Axes, value_RC: NDArray[np.float64], limit: float, rows: list[str], columns: list[str]) -> Any:
    """One heat map with its values in the cells; NaN cells stay grey and empty."""
    image = axes.imshow(np.ma.masked_invalid(value_RC), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")
    axes.set_facecolor("0.88")
    for (row, column), value in np.ndenumerate(value_RC):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.6 * limit else "black"
            weight = "bold" if rows[row] == columns[column] else "normal"
            axes.text(column, row, _signed(value), ha="center", va="center", color=ink, fontsize=9, weight=weight)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("evaluated on")
    return image


def figure(result: AblationResult) -> Figure:
    """Heat map of loss increases, the same under random masks on one scale, and the number of experts removed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [verdict.name for verdict in result.domains]
    columns = [baseline.name for baseline in result.evaluated]
    delta_RC = np.array([[cell.value for cell in row] for row in result.delta])
    random_RC = np.array([[np.nan if cell is None else cell.value for cell in row] for row in result.random])
    shown = np.concatenate([delta_RC, random_RC])
    limit = max(float(np.nanmax(np.abs(shown))), 1e-3)

    cell = max(0.6, 2.8 / len(columns))
    panel, margin = cell * len(columns), 0.6 + 0.085 * max(map(len, rows))
    bottom = 1.5 + 0.06 * max(map(len, columns))
    drawing = Figure(figsize=(2 * panel + margin + 2.8, cell * len(rows) + 0.8 + bottom), layout="constrained", dpi=160)
    FigureCanvasAgg(drawing)
    heat, control = drawing.subplots(1, 2, sharey=True)
    # inside the other panel's frame, so that the bars stay level with its rows
    bars = control.inset_axes((1.0 + 0.15 / panel, 0.0, 2.2 / panel, 1.0), sharey=control)
    image = _heat(heat, delta_RC, limit, rows, columns)
    heat.set_yticks(range(len(rows)), rows)
    heat.set_title("experts of one domain removed", fontsize=11)
    heat.set_ylabel("domain whose experts are removed")
    _heat(control, random_RC, limit, rows, columns)
    seeds = len(result.provenance["random_seeds"])
    measured = "mean of" if np.isfinite(random_RC).all() else "same domain only, mean of"
    control.set_title(f"as many random experts removed\n({measured} {seeds} masks)", fontsize=11)

    shares = [100 * verdict.share for verdict in result.domains]
    bars.barh(range(len(rows)), shares, color="0.45", height=0.6)
    for row, (share, verdict) in enumerate(zip(shares, result.domains, strict=True)):
        bars.text(share, row, f" {verdict.experts:,}", va="center", fontsize=9)
    bars.set_xlim(0, 1.6 * max([*shares, 0.1]))
    bars.set_title("experts removed", fontsize=11)
    bars.set_xlabel("% of all experts")
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.tick_params(axis="y", which="both", length=0, labelleft=False)

    colours = drawing.colorbar(image, ax=[heat, control], location="bottom", shrink=0.7, aspect=45, pad=0.03)
    colours.ax.set_xlim(min(float(np.nanmin(shown)), 0.0), limit)
    colours.set_label("increase of mean next-token loss, nats a token")
    colours.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return drawing


def write(result: AblationResult, out: str | os.PathLike[str]) -> Path:
    """Write report.json, report.md and heatmap.png into a folder, replacing those of an earlier report.

    Returns:
        Path of the heat map.

    Raises:
        ConfigError: `out` is a file.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the report")
    atomic_write_json(folder / JSON_NAME, result.to_json())
    atomic_write_text(folder / MARKDOWN_NAME, markdown(result))
    with atomic_path(folder / FIGURE_NAME) as temporary:
        figure(result).savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.15)
    return folder / FIGURE_NAME


def run(result: Path, out: Path) -> None:
    """Turn the result of `monet ablate` into tables and a heat map.

    Prints the matrix of loss increases and the verdicts, and writes report.json, report.md and heatmap.png.

    Args:
        result: result.json, or the folder it lies in.
        out: folder for the report; an earlier one there is replaced.

    Raises:
        CheckpointError: RESULT is missing or not an ablation result.
        ConfigError: OUT is a file.
    """
    loaded = AblationResult.load(result)
    drawn = write(loaded, out)
    print_result(loaded)
    print(f"report: {drawn.with_name(MARKDOWN_NAME)}\nheat map: {drawn}")
