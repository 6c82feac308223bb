"""Writes docs/evidence.md: all its numbers and claims come from docs/evidence.json.

The text between the page's two marks is `page.md.j2`, filled in by `body`. Its sentences hold for any outcome, or state
the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monet.eval.ablation.results import Verdict
from monet.eval.core.chance import LEVEL
from studies.evidence.results import EvidenceResult
from studies.removal import tables
from studies.removal.measure import settled
from studies.removal.page import caution, fill, number_of, returned, verdict
from studies.removal.results import Domain, Times

BEGIN = "<!-- evidence -->"
FIGURE = "evidence/removal.png"
TEMPLATE = Path(__file__).with_name("page.md.j2")


def _higher(one: Times | None, other: Times | None) -> bool:
    """Compares point estimates; "any number of times" is more than every number."""
    if one is None or other is None:
        return False
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


def body(result: EvidenceResult) -> str:
    """Everything between the page's marks."""
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
    return fill(TEMPLATE, told)
