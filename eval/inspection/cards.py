"""Everything that an export shows of one unit: its row, and its contexts with the weight at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from monet.eval.index.index import Context, Index
from monet.eval.index.units import Unit
from monet.eval.inspection.weights import unit_weights


@dataclass(frozen=True)
class Example:
    """A window, or a piece of it.

    Attributes:
        window: number of the window.
        tokens: texts of its tokens.
        weights: the unit's weight at each token.
        position: place of the context's token in `tokens`.
    """

    window: int
    tokens: list[str]
    weights: list[float]
    position: int


@dataclass(frozen=True)
class Card:
    """One unit.

    Attributes:
        unit: the unit.
        row: its row of the table of experts.
        contexts: its strongest contexts.
        top: their windows, in the same order.
        samples: windows of the samples, by interval.
        firings: number of firings in each of 16 bins of weight.
    """

    unit: Unit
    row: dict[str, Any]
    contexts: list[Context]
    top: list[Example]
    samples: dict[int, list[Example]]
    firings: list[int]


def card_of(index: Index, model: Any, unit: Unit, around: int | None = None) -> Card:
    """Read a unit, with one forward pass for each of its windows.

    Args:
        index: the index.
        model: the model.
        unit: the unit.
        around: tokens before and after each context; None takes whole windows.
    """
    contexts, samples = index.contexts(unit), index.samples(unit)
    known: dict[int, tuple[list[str], list[float]]] = {}

    def example(context: Context) -> Example:
        if context.window not in known:
            window = index.windows[context.window]
            weights = unit_weights(model, window, [unit])[:, 0].tolist()
            known[context.window] = (index.texts.texts(window.ids), [_short(weight) for weight in weights])
        tokens, weights = known[context.window]
        start = 0 if around is None else max(0, context.position - around)
        end = len(tokens) if around is None else context.position + around + 1
        return Example(context.window, tokens[start:end], weights[start:end], context.position - start)

    by_interval: dict[int, list[Example]] = {}
    for context in samples:
        assert context.interval is not None
        by_interval.setdefault(context.interval, []).append(example(context))
    top = [example(context) for context in contexts]
    return Card(unit, index.row(unit), contexts, top, by_interval, index.histogram(unit).tolist())


def _short(weight: float) -> float:
    """Seven digits are all that float32 has."""
    return float(f"{weight:.7g}")
