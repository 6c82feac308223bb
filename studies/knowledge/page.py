"""Writes docs/knowledge.md from docs/knowledge.json; its sentences hold for any outcome, or state the outcome."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables import markdown
from monet.eval.core.chance import LEVEL
from studies.knowledge import asked_tables
from studies.knowledge.results import KnowledgeResult
from studies.removal import tables
from studies.removal.page import caution, fill, returned, verdict

BEGIN = "<!-- knowledge -->"
FIGURE = "knowledge.png"
TEMPLATE = Path(__file__).with_name("page.md.j2")


def above(result: KnowledgeResult) -> list[str]:
    """Domains whose interval is above the worst other domain and above equal mass, with q of at most LEVEL."""
    return [
        one.name for one in result.domains
        if one.q <= LEVEL and one.target_interval[0] > max(one.others_max_delta, one.equal_mass_delta)
    ]  # fmt: skip


def failing(result: KnowledgeResult) -> str:
    """Domains for which that does not hold, in words."""
    names = [one.name for one in result.domains if one.name not in above(result)]
    return f"These domains fail: {', '.join(names)}." if names else "No domain fails."


def by_layers(result: KnowledgeResult) -> str:
    """The target's increase over the worst other domain and over equal mass, by number of converted layers."""
    rows = []
    for one in result.by_layers:
        for row in one.domains:
            mass = row.equal_mass_delta
            rows.append({
                "layers": str(len(one.layers)), "conversion": one.name, "removed": row.name,
                "target": f"{row.target_delta:+.3f}", "times worst other": tables.times(row.times_worst),
                "times equal mass": f"{row.target_delta / mass:.1f}" if mass > 0 else "any",
                "passes": "yes" if row.passes else "no",
            })  # fmt: skip
    return markdown(rows, dict.fromkeys(rows[0], "")).rstrip() if rows else ""


def body(result: KnowledgeResult) -> str:
    """Everything between the page's marks."""
    names = result.overlap.names
    return fill(TEMPLATE, {
        "result": result, "tables": tables, "asked": asked_tables, "of": result.settings,
        "level": f"{LEVEL:g}", "figure": FIGURE, "names": names, "above": above(result), "failing": failing(result),
        "verdict": verdict, "returned": returned,
        "caution": caution(result.models), "by_layers": by_layers(result),
        "overlaps": tables.matrix(names, result.overlap.jaccard),
        "permuted": ", ".join(f"{one:.3f}" for one in result.overlap.permuted),
        "fvu": ", ".join(f"layer {layer}: {value:.3f}" for layer, value in result.fvu.items()),
    })  # fmt: skip
