"""Renders a matplotlib figure as an SVG element for a page: it uses the page's colours and fonts, and no addresses."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from monet.eval.reporting.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#010203"  # placeholder for the text colour of the page; no figure uses it


def inline(drawing: Figure, prefix: str, label: str) -> str:
    """Markup of one `<svg>` element.

    Args:
        drawing: made and saved under `monet.eval.reporting.figures.styled`.
        prefix: prefix of every id, so that ids are unique in a page.
        label: text that screen readers read in place of the figure.
    """
    _in_page_colours(drawing)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = _bare(element.tag)
        for key in list(element.attrib):
            element.set(_bare(key), _value(key, element.attrib.pop(key), prefix))
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    title = ElementTree.Element("title")
    title.text = label
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _in_page_colours(drawing: Figure) -> None:
    """Give texts, axes and ticks the placeholder colour."""
    from matplotlib.text import Text

    for axes in drawing.axes:
        axes.tick_params(which="both", color=_INK, labelcolor=_INK)
        axes.spines[:].set_edgecolor(_INK)
    for text in drawing.findobj(Text):
        text.set_color(_INK)  # pyright: ignore[reportAttributeAccessIssue]


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _value(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    value = re.sub(r"(^|url\()#(?=[A-Za-z_])(?![0-9a-f]{6}\b)", rf"\1#{prefix}-", value)
    for number, colour in enumerate(COLOURS):
        value = value.replace(colour, f"var(--line-{number})")
    value = re.sub(r"font: ?([\d.]+px) [^;\"]*", r"font-size: \1", value)
    return value.replace(_INK, "currentColor")
