"""Writes docs/evidence.md: all its numbers and claims come from docs/evidence.json.

The text between the page's two marks is `page.md.j2`, filled in by `body`. Its sentences hold for any outcome, or state
the outcome.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jinja2

from monet.eval.ablation.results import Verdict
from monet.eval.core.bootstrap import few
from monet.eval.core.chance import LEVEL
from monet.files import atomic_write_text
from studies.evidence import tables
from studies.evidence.removal import settled
from studies.evidence.results import Domain, EvidenceResult, Model, Relearning, Times

BEGIN, END = "<!-- evidence -->", "<!-- end -->"
FIGURE = "evidence/removal.png"
TEMPLATE = Path(__file__).with_name("page.md.j2")


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


def _higher(one: Times, other: Times) -> bool:
    """Compares point estimates; "any number of times" is more than every number."""
    return other.value is not None and (one.value is None or one.value > other.value)


def next_to_dense(monet: Sequence[Domain], dense: Sequence[Domain]) -> str:
    """In how many domains the Monet's point estimates are higher than the dense twin's."""
    pairs = list(zip(monet, dense, strict=True))
    counts = {
        "The domain's own increase": sum(a.target_delta > b.target_delta for a, b in pairs),
        "Its ratio to the worst other domain": sum(_higher(a.times_worst, b.times_worst) for a, b in pairs),
        "Its ratio to the family's mean": sum(_higher(a.times_family, b.times_family) for a, b in pairs),
    }
    told = ". ".join(f"{words} is higher in {count} of {len(pairs)} domains" for words, count in counts.items())
    return f"The Monet is compared with the dense twin by point estimates; the intervals are in the table. {told}."


def summary(result: EvidenceResult) -> str:
    """The findings in a few sentences, for the top of the page and for other pages."""
    harder = []
    for kind in ("mass", "activity"):
        above = sum(row.against[kind].p <= 1 / (1 + row.against[kind].controls) for row in result.domains)
        harder.append(f"of equal {kind} in {above} of {len(result.domains)} domains")
    models = "" if len(result.models) == 1 else " These are domains for which it holds in every model."
    return (
        f"{verdict(result.domains, 'Monet')} A removal costs its domain more than each random removal "
        f"{' and '.join(harder)}.{models} {verdict(result.dense, 'dense LLaMA')}"
    )


def failed(found: Sequence[Verdict]) -> str:
    """How many of the verdicts pass, and which removals cost another domain at least as much as their target."""
    elsewhere = [one.name for one in found if one.removed and one.target_delta <= one.others_max_delta]
    told = f"{sum(one.passes for one in found)} of {len(found)} pass."
    if elsewhere:
        told += f" Another one loses as much or more when these are removed: {', '.join(elsewhere)}."
    if empty := [one.name for one in found if not one.removed]:
        told += f" Nothing belongs to {', '.join(empty)}."
    return told


def returned(found: Sequence[Relearning]) -> str:
    """The last stage of each arm, in words."""
    told = []
    for one in found:
        last = {arm.name: arm.stages[-1].returned for arm in one.arms}
        shares = {
            name: "an unknown share" if share is None else tables.estimate(share, lambda value: f"{value:.0%}")
            for name, share in last.items()
        }
        model = {"monet": "Monet", "llama": "LLaMA"}[one.kind]
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


def body(result: EvidenceResult) -> str:
    """Everything between the page's marks."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    told = {
        "result": result, "tables": tables, "of": result.settings, "level": f"{LEVEL:g}", "figure": FIGURE,
        "confidence": f"{result.settings['confidence']:.0%}",
        "models": [*result.models, *result.dense_models], "names": [row.name for row in result.domains],
        "rule": (settled.__doc__ or "").strip(), "summary": summary, "verdict": verdict,
        "next_to_dense": next_to_dense, "returned": returned, "failed": failed,
        "caution": caution(result.models),
        "counted": f"{number_of(len(result.models), 'Monet')} and {number_of(len(result.dense_models), 'dense LLaMA')}",
        "versions": ", ".join(f"{name} {version}" for name, version in result.provenance["versions"].items()),
    }  # fmt: skip
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(told)
    return "\n\n".join(wrap(block) for block in re.split(r"\n{2,}", text.strip()))


def insert(page: Path, text: str) -> None:
    """Put a text between the page's marks.

    Raises:
        KeyError: the page does not have both marks once.
    """
    content = page.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise KeyError(f"{page}: {BEGIN} and {END} must each be there once")
    head, rest = content.split(BEGIN)
    atomic_write_text(page, f"{head}{BEGIN}\n{text.strip()}\n{END}{rest.split(END)[1]}")


def written(page: Path) -> str:
    """What is between the marks."""
    return page.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
