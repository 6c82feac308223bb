"""HTML of objects in notebooks. Text is hostile: every token and label is cleaned and escaped, and nothing runs.

The page has no script and loads nothing. Colours follow the theme of the notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from monet.terminal import clean

if TYPE_CHECKING:
    from monet.eval.index.index import Context, Index

_SHOWN = 8
_AROUND = 16


def text(value: object) -> Markup:
    """A value as escaped text; control characters and characters that reorder text become replacement marks."""
    return escape(clean(str(value)))


def tag(name: str, *children: object, style: str = "") -> Markup:
    """An element; children that are no Markup are escaped."""
    opened = Markup("<{} style='{}'>").format(Markup(name), style) if style else Markup(f"<{name}>")
    inside = Markup("").join(child if isinstance(child, Markup) else text(child) for child in children)
    return opened + inside + Markup(f"</{name}>")


def table(head: list[str], rows: list[list[object]]) -> Markup:
    """A table of cells."""
    lines = [tag("tr", *(tag("th", cell) for cell in head))]
    lines += [tag("tr", *(tag("td", cell, style="text-align:left") for cell in row)) for row in rows]
    return tag("table", *lines)


def marked(tokens: list[str], position: int, around: int = _AROUND) -> Markup:
    """Tokens around a position, with the token at the position marked."""
    start = max(0, position - around)
    parts = [
        tag("mark", token) if start + n == position else text(token)
        for n, token in enumerate(tokens[start : position + around + 1])
    ]
    return tag("span", *parts, style="white-space:pre-wrap;font-family:monospace;unicode-bidi:isolate")


def expert(
    name: str, index: Index, row: dict[str, Any], tokens: list[tuple[str, float]], contexts: list[Context]
) -> str:
    """An expert: its numbers, tokens and labels, and its strongest contexts."""
    facts: list[list[object]] = [
        ["fires at", f"{row['count']:,} of {index.info.num_tokens:,} tokens ({row['rate']:.3%})"],
        ["largest weight", f"{row['max']:.3f}"],
        ["best label", _best_label(row)],
        ["fires on", ", ".join(f"{token!r} {firings:,.0f}" for token, firings in tokens)],
    ]
    return str(tag("div", tag("h4", name), table(["", ""], facts), _contexts(index, contexts[:_SHOWN])))


def inspection(index: Index) -> str:
    """An index: sizes, labels, and dead experts by group."""
    info = index.info
    facts: list[list[object]] = [
        ["experts", f"{info.units.experts:,} in {info.model.groups} routing groups"],
        ["tokens", f"{info.num_tokens:,} of {sum(info.windows):,} windows"],
        ["labels", ", ".join(info.data.labels)],
        ["contexts of an expert", info.settings.top],
    ]
    return str(tag("div", tag("h4", f"Index {index.folder.name}"), table(["", ""], facts)))


def _contexts(index: Index, contexts: list[Context]) -> Markup:
    rows: list[list[object]] = []
    for context in contexts:
        window = index.windows[context.window]
        tokens = index.texts.texts(window.ids)
        rows.append([f"{context.weight:.3f}", window.label, marked(tokens, context.position)])
    return table(["weight", "label", "context"], rows)


def _best_label(row: dict[str, Any]) -> str:
    if row["best_label"] is None:
        return "none, it never fires"
    return f"{row['best_label']} ({row['label_share']:.0%} of its mean weights)"
