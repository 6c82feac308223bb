"""What the pages of all studies share: sentences about verdicts, and the text between a page's marks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from monet.eval.core.bootstrap import few
from monet.eval.core.document import Report
from monet.eval.reporting import command as report
from monet.files import atomic_path, atomic_write_text
from studies.removal import tables
from studies.removal.results import Domain, Model, Relearning

END = "<!-- end -->"


def wrap(block: str) -> str:
    """A paragraph in lines of at most 120 characters; a table, heading or picture unchanged."""
    if block.startswith(("|", "#", "!")):
        return block
    return textwrap.fill(" ".join(block.split()), 120, break_long_words=False, break_on_hyphens=False)


def number_of(count: int, kind: str) -> str:
    """For example "3 Monets"."""
    return f"{count} {kind}{'' if count == 1 else 's'}"


def verdict(rows: Sequence[Domain], kind: str) -> str:
    """Which domains pass in all models, which in some, and which in none.

    Args:
        rows: of one kind of model.
        kind: "Monet" or "dense LLaMA".
    """
    models = len(rows[0].seeds)
    whole = [row.name for row in rows if row.passes]
    some = [f"{row.name} in {row.passed}" for row in rows if 0 < row.passed < models]
    none = [row.name for row in rows if not row.passed]
    where = f"the one {kind}" if models == 1 else f"each of the {models} {kind}s"
    told = [f"{len(whole)} of {len(rows)} domains pass in {where}{': ' if whole else ''}{', '.join(whole)}."]
    if some:
        told.append(f"These pass in some of them: {', '.join(some)}.")
    if none:
        told.append(f"These fail{'' if models == 1 else ' in all of them'}: {', '.join(none)}.")
    return " ".join(told)


def returned(found: Sequence[Relearning]) -> str:
    """The last stage of each arm, in words."""
    told = []
    for one in found:
        last = {arm.name: arm.stages[-1].returned for arm in one.arms}
        shares = {
            name: "an unknown share" if share is None else tables.estimate(share, lambda value: f"{value:.0%}")
            for name, share in last.items()
        }
        model = tables.MODELS[one.kind]
        told.append(f"For {one.name} in the {model} it is {shares['own']}, and {shares['random']} for random removals.")
    steps = found[0].arms[0].stages[-1].step
    return f"The share of a removal's cost that returned after {steps} steps follows. {' '.join(told)}"


def caution(models: Sequence[Model]) -> str:
    """A caution that names domains with few sources, or few documents if sources are not known; empty if none has."""
    losses = models[0].losses
    sources = {one.name: one.sources for one in losses if one.sources is not None}
    if len(sources) == len(losses):
        return few(sources, "source")
    documents = few({one.name: one.documents for one in losses}, "document")
    return (
        f"The sources of the documents are not known; documents of one source are not independent. {documents}".strip()
    )


def draw(found: Report, out: Path, figure: Path) -> None:
    """Write a report's only figure into OUT/report, and a copy of it to a page's picture."""
    report.write(found, out / "report", ["png"])
    figure.parent.mkdir(exist_ok=True)
    with atomic_path(figure) as temporary:
        temporary.write_bytes(min((out / "report").glob("figure-01*.png")).read_bytes())


def insert(page: Path, text: str, begin: str) -> None:
    """Put a text between the page's marks.

    Raises:
        KeyError: the page does not have both marks once.
    """
    content = page.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(END) != 1:
        raise KeyError(f"{page}: {begin} and {END} must each be there once")
    head, rest = content.split(begin)
    atomic_write_text(page, f"{head}{begin}\n{text.strip()}\n{END}{rest.split(END)[1]}")


def written(page: Path, begin: str) -> str:
    """What is between the marks."""
    return page.read_text(encoding="utf-8").split(begin)[1].split(END)[0].strip()


def fill(template: Path, values: Mapping[str, Any]) -> str:
    """A page's text from its template, wrapped."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = environment.from_string(template.read_text(encoding="utf-8")).render(values)
    return "\n\n".join(wrap(block) for block in re.split(r"\n{2,}", text.strip()))
