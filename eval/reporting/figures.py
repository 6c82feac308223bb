"""Draws blocks as matplotlib figures: heat maps side by side, lines and dots with their intervals."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monet.eval.core.document import Bars, Curve, Dots, Heatmap, Panels
from monet.eval.reporting import common
from monet.terminal import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; lines also differ by marker and dash.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#666666")
_MARKERS, _DASHES = "osD^vPX*", ("-", "--", "-.", ":")
# A heat map with more names than this on a side shows only colours and at most this many names, in a limited size.
_READABLE, _NAMES, _INCHES = 40, 100, 14.0


@contextmanager
def styled() -> Iterator[None]:
    """The settings under which every figure is made and saved."""
    import matplotlib

    settings: dict[Any, Any] = {"font.family": "sans-serif", "font.size": 10}
    settings |= {"svg.fonttype": "none", "svg.hashsalt": "monet"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # If matplotlib's font lacks a script, a page still shows the text, but a PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def draw(block: common.Figure) -> Figure:
    """Draw a block; call inside `styled`."""
    if isinstance(block, Curve):
        return draw_curve(block)
    if isinstance(block, Dots):
        return draw_dots(block)
    return draw_panels(block if isinstance(block, Panels) else Panels(block.title, [block], note=block.note))


def _new(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained", dpi=160)
    FigureCanvasAgg(drawing)
    return drawing


def _words(text: str) -> str:
    """Escape text, so that a dollar sign does not begin a formula."""
    return clean(text).replace("$", r"\$")


def _wrapped(title: str, inches: float) -> str:
    """Break a title into lines that are no wider than its figure."""
    return textwrap.fill(_words(title), max(12, int(inches / 0.088)))


def _ink(colour: Any) -> str:
    """Black or white, whichever has more contrast: at least 4.5 to 1 on any colour (WCAG 2's relative luminance)."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour[:3]]
    return "black" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "white"


def _heat(axes: Axes, value_RC: NDArray[np.float64], limit: float, rows: Sequence[str], heatmap: Heatmap) -> Any:
    """Draw one heat map. Cells without a measurement stay grey. Values are written in cells that are large enough."""
    image = axes.imshow(np.ma.masked_invalid(value_RC), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")
    axes.set_facecolor("0.88")
    small = _is_small(len(rows), len(heatmap.columns))
    if not small:
        _write_values(axes, image, value_RC, common.digits_for(limit), rows, heatmap)
        axes.set_xticks(np.arange(len(heatmap.columns) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
    places, names = _shown(heatmap.columns)
    turned: dict[str, Any] = (
        {"rotation": 90, "fontsize": 6} if small else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    )
    axes.set_xticks(places, names, **turned)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(_words(heatmap.column_axis))
    return image


def _is_small(rows: int, columns: int) -> bool:
    """Whether there are too many cells to show values."""
    return max(rows, columns) > _READABLE


def _shown(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions and texts of the names along a side; if there are many, only evenly spaced ones."""
    places = list(range(0, len(names), -(-len(names) // _NAMES) or 1))
    return places, [_words(names[place]) for place in places]


def _write_values(
    axes: Axes, image: Any, value_RC: NDArray[np.float64], digits: int, rows: Sequence[str], heatmap: Heatmap
) -> None:
    for (row, column), value in np.ndenumerate(value_RC):
        if np.isfinite(value):
            ink = _ink(image.cmap(image.norm(value)))
            weight = "bold" if rows[row] == heatmap.columns[column] else "normal"
            shown = common.signed(float(value), digits)
            axes.text(column, row, shown, ha="center", va="center", color=ink, fontsize=9, weight=weight)


def _bars(axes: Axes, bars: Bars) -> None:
    rows = np.arange(len(bars.values))
    if len(rows) > _READABLE:
        axes.fill_betweenx(rows, 0, bars.values, step="mid", color="0.45", linewidth=0)
    else:
        axes.barh(rows, bars.values, color="0.45", height=0.6)
        for row, (value, label) in enumerate(zip(bars.values, bars.labels, strict=True)):
            axes.text(value, row, f" {_words(label)}", va="center", fontsize=9)
    axes.set_xlim(0, 1.6 * max([*bars.values, 0.1]))
    axes.set_title(_wrapped(bars.title, 2.2), fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", which="both", length=0, labelleft=False)


def draw_panels(block: Panels) -> Figure:
    """Heat maps side by side on one scale centred at zero, bars at the right.

    Above 40 rows or columns, cells show no values, and the picture stops growing.
    """
    first, limit = block.panels[0], common.limit_of(block.panels)
    rows = list(first.rows)
    columns = max(len(panel.columns) for panel in block.panels)
    small = _is_small(len(rows), columns)
    cell = _INCHES / max(len(rows), columns) if small else max(0.6, 2.8 / max(columns, 1))
    longest = max((len(name) for panel in block.panels for name in panel.columns), default=0)
    width = cell * sum(len(panel.columns) for panel in block.panels) + 0.6 + 0.085 * max(map(len, rows), default=0)
    height = cell * len(rows) + 0.8 + 1.5 + 0.06 * longest
    drawing = _new(max(width + (2.8 if block.bars else 0.4), 5.0), height)
    ratios = [max(len(panel.columns), 1) for panel in block.panels]
    grid = drawing.subplots(1, len(block.panels), sharey=True, squeeze=False, width_ratios=ratios)[0]
    images = []
    for axes, panel in zip(grid, block.panels, strict=True):
        value_RC = np.array([[np.nan if value is None else value for value in row] for row in panel.values], float)
        images.append(_heat(axes, value_RC.reshape(len(rows), len(panel.columns)), limit, rows, panel))
        axes.set_title(_wrapped(panel.title, cell * len(panel.columns)), fontsize=11)
    places, names = _shown(rows)
    grid[0].set_yticks(places, names, fontsize=6 if small else None)
    grid[0].set_ylabel(_words(first.row_axis))
    if block.bars is not None:
        # Inside the last panel's frame, so that the bars stay aligned with its rows.
        panel_width = cell * ratios[-1]
        bars = grid[-1].inset_axes((1.0 + 0.15 / panel_width, 0.0, 2.2 / panel_width, 1.0), sharey=grid[-1])
        _bars(bars, block.bars)
    colours = drawing.colorbar(images[0], ax=list(grid), location="bottom", shrink=0.7, aspect=45, pad=0.03)
    ends = [*common.values_of(block.panels), 0.0]
    colours.ax.set_xlim(min(ends), max(ends) if max(ends) > min(ends) else limit)
    colours.set_label(_words(f"{block.title}, {first.unit}" if block.title else first.unit))
    colours.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return drawing


def draw_curve(block: Curve) -> Figure:
    """Draw lines with markers and shaded intervals, small enough for a telephone."""
    drawing = _new(4.9, 3.6 + 0.18 * ((len(block.series) + 1) // 2))
    axes = drawing.subplots()
    lines = []
    for number, series in enumerate(block.series):
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
        marker = _MARKERS[number % len(_MARKERS)]
        lines += axes.plot(series.x, series.y, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.6)
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    if block.log_x:
        axes.set_xscale("log")
    axes.set_xlabel(_words(block.x_label))
    axes.set_ylabel(_words(block.y_label))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(drawing, lines, [series.name for series in block.series])
    return drawing


def draw_dots(block: Dots) -> Figure:
    """Draw marks with their intervals as lines, one row below the other. Above 40 rows the picture stops growing."""
    count, rows = max(len(block.marks), 1), len(block.rows)
    drawing = _new(4.9, min(0.4 + (0.2 + 0.16 * count) * rows, _INCHES) + 0.9 + 0.18 * ((count + 1) // 2))
    axes = drawing.subplots()
    drawn = []
    for number, series in enumerate(block.marks):
        colour = COLOURS[series.colour % len(COLOURS)]
        plain = _MARKERS.replace("D", "")  # a diamond is a mean
        marker, size = ("D", 7) if series.strong else (plain[number % len(plain)], 4.5)
        place_R = np.arange(rows) + 0.7 * ((number + 0.5) / count - 0.5)
        value_R, low_R, high_R = (
            np.array([np.nan if common.finite(x) is None else x for x in of], float)
            for of in (series.values, series.low, series.high)
        )
        axes.hlines(place_R, low_R, high_R, color=colour, linewidth=2.2 if series.strong else 1.2)
        drawn += axes.plot(value_R, place_R, color=colour, linestyle="", marker=marker, markersize=size)
    axes.axvline(0.0, color="0.6", linewidth=0.8)
    places, names = _shown(block.rows)
    axes.set_yticks(places, names, fontsize=6 if rows > _READABLE else None)
    axes.set_ylim(max(rows, 1) - 0.5, -0.5)
    axes.set_xlabel(_words(block.x_label))
    axes.set_ylabel(_words(block.row_axis))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(drawing, drawn, [series.name for series in block.marks])
    return drawing


def _legend(drawing: Figure, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Put the names below the axes."""
    if not lines:
        return
    # matplotlib omits names that begin with an underscore, so the names are set afterwards.
    legend = drawing.legend(lines, [f"line {n}" for n in range(len(lines))], loc="outside lower left", ncols=2)
    legend.set_frame_on(False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(_words(name))
