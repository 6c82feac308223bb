"""Writes the table of recipes in docs/conversion.md from docs/conversion.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.tables import markdown
from monet.eval.reporting.common import signed
from studies.recipe.results import RecipeResult, RowResult
from studies.recipe.rows import BASE
from studies.removal.page import fill

BEGIN = "<!-- recipe -->"
TEMPLATE = Path(__file__).with_name("page.md.j2")


def _acting(row: RowResult) -> dict[str, str]:
    """How much acts at a token, and how much ever acted."""
    if row.latents:
        latents = row.latents.values()
        used = mean(one.latents - one.dead for one in latents)
        return {
            "acting at a token": f"{mean(one.active for one in latents):,.0f} latents",
            "ever acted": f"{used:,.0f} of {max(one.latents for one in latents):,}",
            "keys of a head": "",
        }
    routing, keys = row.routing.values(), row.settings["moe_experts"]
    return {
        "acting at a token": f"{mean(one.active_keys for one in routing):.0f} keys of {keys}",
        "ever acted": f"{mean(one.pairs for one in routing):,.0f} of {keys**2:,}",
        "keys of a head": f"{mean(one.keys_of_head for one in routing):.0f}",
    }


def table(result: RecipeResult) -> str:
    """One line for each recipe."""
    layers = list(map(str, result.layers))
    known = any(row.losses for row in result.rows)
    lines: list[Mapping[str, Any]] = []
    for row in result.rows:
        rise = row.loss_rise
        lines.append({
            "row": row.name, "what differs": row.change,
            "parameters": f"{row.parameters / 1e6:.1f} M", "minutes": f"{row.seconds / 60:.1f}",
            "processor minutes": f"{row.cpu_seconds / 60:.1f}", "start": f"{row.mean_fvu(layers, start=True):.3f}",
            "FVU": f"{row.mean_fvu(layers):.4f}", **{f"layer {layer}": f"{row.fvu[layer]:.3f}" for layer in layers},
            **_acting(row), **({"loss": "" if rise is None else signed(rise, 4)} if known else {}),
        })  # fmt: skip
    return markdown(lines, dict.fromkeys(lines[0], "")).rstrip()


def body(result: RecipeResult) -> str:
    """Everything between the page's marks."""
    base = next((row for row in result.rows if row.name == BASE), result.rows[0])
    return fill(TEMPLATE, {
        "result": result, "table": table(result), "base": base, "settings": base.settings,
        "known": any(row.losses for row in result.rows), "transcoders": any(row.latents for row in result.rows),
        "layers": ", ".join(map(str, result.layers)),
    })  # fmt: skip
