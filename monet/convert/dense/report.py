"""The report of a conversion: typed JSON, a page in Markdown, and a figure of the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from monet.errors import CheckpointError
from monet.files import atomic_path, atomic_write_json, atomic_write_text
from monet.json_text import read_json
from monet.terminal import clean

_CAUTION = (
    "The estimates assume FVU ~ tokens^-exponent, fitted to this run's curve. They are rather too low: the fall of the "
    "learning rate at the end also lowers the curve."
)
REPORT, PAGE, FIGURE = "report.json", "report.md", "report.png"
FORMAT = "monet-conversion-1"


class Domain(msgspec.Struct, frozen=True):
    """Losses of one domain, nats per token; `kl` is KL(dense || converted). `local` is after stage 1."""

    name: str
    tokens: int
    loss_dense: float
    loss_local: float
    loss: float
    kl_local: float
    kl: float


class Group(msgspec.Struct, frozen=True):
    """How one router chose on held-out text: see `monet.convert.dense.measure.Activity`."""

    layer: int
    keys: tuple[int, int]
    keys_of_head: float
    pairs: int
    active_keys: float
    active_over_heads: float
    tokens: int


class Part(msgspec.Struct, frozen=True):
    """Time of one part of the work; processor seconds count all threads of this process."""

    name: str
    tokens: int
    seconds: float
    cpu_seconds: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Trend(msgspec.Struct, frozen=True):
    """FVU ~ tokens ** -exponent, fitted to a layer's curve; `next_million` is the expected FVU after 1 M more tokens.

    None for a curve that is too short, or that does not fall.
    """

    exponent: float | None
    next_million: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of a conversion.

    Attributes:
        model: the dense model.
        layers: converted layers.
        settings: as in convert.json.
        tokens, distil_tokens: of stage 1 and of stage 2.
        fvu_start, fvu: held-out fraction of variance unexplained by layer, before and after stage 1. Stage 2 learns
            another goal, so it has no such number.
        curve: FVU of stage 1 on text that it had not read before.
        trends: by layer.
        groups: routing of each group after stage 1.
        domains: losses after the last stage; empty if no model was measured.
        parts: times.
        parameters: numbers of parameters of the hybrid (all), and of its new routers and experts.
    """

    model: str
    layers: list[int]
    settings: dict[str, Any]
    tokens: int
    distil_tokens: int
    fvu_start: dict[int, float]
    fvu: dict[int, float]
    curve: list[dict[str, Any]]
    trends: dict[int, Trend]
    groups: list[Group]
    domains: list[Domain]
    parts: list[Part]
    parameters: dict[str, int]

    @property
    def perplexity_dense(self) -> float | None:
        """exp of the mean of the domains' losses."""
        return _perplexity([domain.loss_dense for domain in self.domains])

    @property
    def perplexity_local(self) -> float | None:
        return _perplexity([domain.loss_local for domain in self.domains])

    @property
    def perplexity_converted(self) -> float | None:
        return _perplexity([domain.loss for domain in self.domains])

    @property
    def mean_fvu(self) -> float:
        return sum(self.fvu.values()) / len(self.fvu)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the numbers that people ask for first come first."""
        shown = ("mean_fvu", "perplexity_dense", "perplexity_local", "perplexity_converted")
        own = msgspec.to_builtins(self, str_keys=True)
        return {"format": FORMAT, **{name: getattr(self, name) for name in shown}, **own}

    @classmethod
    def load(cls, folder: Path) -> Report:
        """Read FOLDER/report.json.

        Raises:
            CheckpointError: it is missing, or a field is missing or of another type.
        """
        path = folder / REPORT
        try:
            content = read_json(path, CheckpointError)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; run `monet convert` first") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not a report of `monet convert`")
        try:
            return msgspec.convert(content, cls, strict=False)
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{path}: {error}; run `monet convert` again") from None

    def save(self, folder: Path) -> None:
        """Write report.md, report.png if there is a curve, and last report.json."""
        if len(self.curve) > 1:
            _draw(self, folder / FIGURE)
        atomic_write_text(folder / PAGE, page(self))
        atomic_write_json(folder / REPORT, self.to_json())


def trend(points: Sequence[tuple[int, float]], last: float) -> Trend:
    """Fit log FVU against log tokens by least squares, without the first tenth of the tokens.

    Args:
        points: (tokens, FVU) in order.
        last: held-out FVU at the end, from which the fit extrapolates.
    """
    if not points:
        return Trend(None, None)
    end = points[-1][0]
    used = [(math.log(tokens), math.log(fvu)) for tokens, fvu in points if tokens >= end / 10 and fvu > 0]
    if len(used) < 4 or used[0][0] == used[-1][0]:
        return Trend(None, None)
    x, y = np.array(used).T
    exponent = -float(np.polyfit(x, y, 1)[0])
    if exponent <= 0:
        return Trend(exponent, None)
    return Trend(exponent, last * (1 + 1e6 / end) ** -exponent)


def trends(curve: Sequence[Mapping[str, Any]], fvu: Mapping[int, float]) -> dict[int, Trend]:
    """The trend of each layer."""
    return {
        layer: trend([(point["tokens"], point["fvu"][str(layer)]) for point in curve], last)
        for layer, last in fvu.items()
    }


def page(report: Report) -> str:
    """The report as Markdown."""
    lines = [f"# Conversion of {clean(report.model)}", "", *summary(report), "", "## Layers", ""]
    lines += ["FVU is the fraction of the MLP's output variance that a layer leaves unexplained, on held-out text.", ""]
    lines += _table(
        ["layer", "FVU at the start", "FVU after stage 1", "exponent", "FVU after 1 M more tokens (estimate)"],
        [
            [str(layer), _number(report.fvu_start.get(layer)), _number(value),
             _number(report.trends[layer].exponent, 2), _number(report.trends[layer].next_million)]
            for layer, value in report.fvu.items()
        ],
    )  # fmt: skip
    lines += ["", _CAUTION, ""]
    if len(report.curve) > 1:
        lines += [f"![FVU by tokens]({FIGURE})", ""]
    lines += ["## Routing", "", "Keys and experts that acted at least once on held-out text.", ""]
    lines += _table(
        ["router in layer", "keys used, first and second axis", "keys that a head uses", "experts used",
         "active keys per side and head", "active over all heads", "tokens"],
        [[str(one.layer), f"{one.keys[0]}, {one.keys[1]}", f"{one.keys_of_head:.1f}", f"{one.pairs:,}",
          f"{one.active_keys:.1f}", f"{one.active_over_heads:.1f}", f"{one.tokens:,}"] for one in report.groups],
    )  # fmt: skip
    if report.domains:
        lines += ["", "## Loss by domain", "", "Nats per token on held-out text.", ""]
        distilled = report.distil_tokens > 0
        names = ["domain", "dense", "after stage 1", "KL after stage 1"]
        names += ["after stage 2", "KL after stage 2"] if distilled else []
        lines += _table(
            names,
            [[clean(one.name), f"{one.loss_dense:.4f}", f"{one.loss_local:.4f}", f"{one.kl_local:.4f}",
              *([f"{one.loss:.4f}", f"{one.kl:.4f}"] if distilled else [])] for one in report.domains],
        )  # fmt: skip
    lines += ["", "## Time", ""]
    lines += _table(
        ["part", "tokens", "seconds", "processor seconds", "tokens per second"],
        [[part.name, f"{part.tokens:,}", f"{part.seconds:.1f}",
          "-" if part.cpu_seconds is None else f"{part.cpu_seconds:.1f}", f"{part.tokens_per_second:,.0f}"]
         for part in report.parts],
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def summary(report: Report) -> list[str]:
    """The main numbers, as sentences."""
    text = [f"Layers {', '.join(map(str, report.layers))}; mean FVU {report.mean_fvu:.3f} after {report.tokens:,} "
            "tokens of stage 1."]  # fmt: skip
    dense, converted = report.perplexity_dense, report.perplexity_converted
    if dense is not None and converted is not None:
        text += [f"Perplexity {dense:.2f} for the dense model, {converted:.2f} for the converted one "
                 f"({converted / dense - 1:+.1%}); exp of the mean of the domains' losses."]  # fmt: skip
    whole, new = report.parameters["all"], report.parameters["routers and experts"]
    return [*text, f"{whole:,} parameters, {new:,} of them in the new routers and experts."]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _perplexity(losses: Sequence[float]) -> float | None:
    return math.exp(min(sum(losses) / len(losses), 700.0)) if losses else None


def _draw(report: Report, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7.0, 4.5), layout="constrained", dpi=160)
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    for layer in report.layers:
        axes.plot(
            [point["tokens"] for point in report.curve],
            [point["fvu"][str(layer)] for point in report.curve],
            label=f"layer {layer}",
            linewidth=1.2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("tokens of stage 1")
    axes.set_ylabel("FVU on new text")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8, ncols=2 if len(report.layers) > 8 else 1)
    with atomic_path(path) as temporary:
        drawing.savefig(temporary, format="png")
