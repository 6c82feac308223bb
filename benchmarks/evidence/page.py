"""docs/evidence.json, and the tables of docs/evidence.md between the marks that name them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from monet.eval.curve import CurveResult
from monet.eval.reporting.common import bracketed, signed
from monet.eval.results import AblationResult, Baseline, Verdict
from monet.files import atomic_write_json, atomic_write_text

FORMAT = "monet-evidence/1"
DENSE = {"first": "LLaMA, first layer", "top": "LLaMA, as many"}
LEAST_OVER_OTHERS, LEAST_OVER_RANDOM = 3.0, 10.0


def over(value: float, other: float) -> float | None:
    """How many times `other`; None where that is nothing or less, and exceeded however little the value is."""
    if other > 0:
        return value / other
    return None if value > 0 else 0.0


def _times(value: float | None) -> str:
    return "any" if value is None or value == math.inf else f"{value:.1f}"


def deltas(found: Verdict) -> dict[str, Any]:
    """Increases on the target, on the others and under random masks, with their intervals."""
    return {
        "target_delta": found.target_delta, "target_interval": found.target_interval,
        "others_mean_delta": found.others_mean_delta, "others_mean_interval": found.others_mean_interval,
        "random_delta": found.random_delta, "random_interval": found.random_interval, "controls": found.controls,
        "p": found.p, "q": found.q, "passes": found.passes,
    }  # fmt: skip


def domain(verdict: Verdict, equal_mass: Verdict, dense: Mapping[str, Verdict]) -> dict[str, Any]:
    """One domain's entry of docs/evidence.json."""
    others = over(verdict.target_delta, verdict.others_mean_delta)
    random = over(verdict.target_delta, verdict.random_delta)

    def measured(found: Verdict, unit: str) -> dict[str, Any]:
        return {
            **deltas(found), "others_max_delta": found.others_max_delta, "others_max_name": found.others_max_name,
            unit: found.removed, "share": found.share,
        }  # fmt: skip

    return {
        "name": verdict.name,
        **measured(verdict, "experts"),
        "experts_per_group": verdict.removed_per_group,
        "target_over_others": others,
        "target_over_random": random,
        "meets_others": others is None or others >= LEAST_OVER_OTHERS,
        "meets_random": random is None or random >= LEAST_OVER_RANDOM,
        "equal_mass_random_delta": equal_mass.random_delta,
        "equal_mass_random_interval": equal_mass.random_interval,
        "equal_mass_p": equal_mass.p,
        "equal_mass_q": equal_mass.q,
        "dense": {name: measured(found, "neurons") for name, found in dense.items()},
    }


def shares(times: Mapping[float, Mapping[str, float]]) -> str:
    """How many times a random mask's increase the domains' own are, by share of experts."""
    rows = [{"share": f"{share:.1%}", **{name: _times(value) for name, value in found.items()}}
            for share, found in times.items()]  # fmt: skip
    return markdown(rows, dict.fromkeys(rows[0], ""))


def goals(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each domain's removal beside the others' and random masks."""
    table = [
        {
            "removed": row["name"],
            "target": bracketed(row["target_delta"], *row["target_interval"]),
            "others, mean": bracketed(row["others_mean_delta"], *row["others_mean_interval"]),
            "times": _times(row["target_over_others"]),
            "others, most": f"{signed(row['others_max_delta'], 3)} ({row['others_max_name']})",
            "random, as many": bracketed(row["random_delta"], *row["random_interval"]),
            "times ": _times(row["target_over_random"]),
            "random, equal mass": bracketed(row["equal_mass_random_delta"], *row["equal_mass_random_interval"]),
        }
        for row in rows
    ]
    return markdown(table, dict.fromkeys(table[0], ""))


def matrix(result: AblationResult) -> str:
    """Increase of every domain's loss under every mask."""
    names = [baseline.name for baseline in result.evaluated]
    rows = [
        {"removed": verdict.name, **{name: signed(cell.value, 3) for name, cell in zip(names, row, strict=True)}}
        for verdict, row in zip(result.domains, result.delta, strict=True)
    ]
    return markdown(rows, {"removed": "", **dict.fromkeys(names, "")})


def curve(result: CurveResult) -> str:
    """The target's increase, and how many times the others' and the random masks', by threshold."""
    rows = []
    for number, verdict in enumerate(result.points[0].domains):
        row = {"removed": verdict.name}
        for point in result.points:
            found = point.domains[number]
            times = (_times(over(found.target_delta, other)) for other in (found.others_mean_delta, found.random_delta))
            row[f"{point.threshold:.1%}"] = f"{signed(found.target_delta, 3)} ({' / '.join(times)})"
        rows.append(row)
    return markdown(rows, {"removed": "", **{f"{point.threshold:.1%}": "" for point in result.points}})


def experts(verdicts: Sequence[Verdict]) -> str:
    """How many experts each domain has, by routing group."""
    groups = range(len(verdicts[0].removed_per_group))
    rows = [
        {"domain": one.name, "experts": one.removed, "share": one.share,
         **{f"group {n}": one.removed_per_group[n] for n in groups}}
        for one in verdicts
    ]  # fmt: skip
    return markdown(rows, {"domain": "", "experts": ",", "share": ".1%", **{f"group {n}": "," for n in groups}})


def dense(rows: Sequence[Mapping[str, Any]]) -> str:
    """The dense twin's neurons beside the Monet's experts."""
    table, columns = [], {"removed": "", "Monet: target": "", "times others": "", "times random": "", "share": ""}
    for row in rows:
        cells = {
            "removed": row["name"], "Monet: target": signed(row["target_delta"], 3),
            "times others": _times(row["target_over_others"]), "times random": _times(row["target_over_random"]),
            "share": f"{row['share']:.1%}",
        }  # fmt: skip
        for name, found in row["dense"].items():
            target = found["target_delta"]
            times = [_times(over(target, found[key])) for key in ("others_mean_delta", "random_delta")]
            column = f"{DENSE[name]}: target (times others / random; share)"
            columns[column] = ""
            told = f"{signed(target, 3)} ({' / '.join(times)}; {found['share']:.1%})"
            cells[column] = told if found["neurons"] else "no neuron"
        table.append(cells)
    return markdown(table, columns)


def text(monet: Sequence[Baseline], llama: Sequence[Baseline]) -> str:
    """What was evaluated on, and both whole models' losses there."""
    rows = [
        {"domain": ours.name, "Monet": f"{ours.loss.value:.3f} [{ours.loss.low:.3f}, {ours.loss.high:.3f}]",
         "LLaMA": f"{theirs.loss.value:.3f} [{theirs.loss.low:.3f}, {theirs.loss.high:.3f}]",
         "windows": ours.windows, "documents": ours.documents}
        for ours, theirs in zip(monet, llama, strict=True)
    ]  # fmt: skip
    return markdown(rows, {"domain": "", "Monet": "", "LLaMA": "", "windows": ",", "documents": ","})


def simple(result: AblationResult) -> str:
    """Verdicts of one of the experiments that fail."""
    rows = [
        {"removed": one.name, "experts": f"{one.removed:,} ({one.share:.1%})",
         "target": bracketed(one.target_delta, *one.target_interval),
         "others, mean": bracketed(one.others_mean_delta, *one.others_mean_interval),
         "times": _times(over(one.target_delta, one.others_mean_delta)),
         "random, as many": bracketed(one.random_delta, *one.random_interval),
         "times ": _times(over(one.target_delta, one.random_delta))}
        for one in result.domains
    ]  # fmt: skip
    return markdown(rows, dict.fromkeys(rows[0], ""))


def relearning(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """What the removed experts cost after so many steps, and the share of their first cost that this is."""
    rows = []
    for label, losses in found.items():
        cost = {step: of["removed"] - of["whole"] for step, of in losses.items()}
        later = {
            f"after {step} steps": f"{signed(value, 3)} ({value / cost[0]:.0%})" for step, value in cost.items() if step
        }
        rows.append({"removed": label, "before": signed(cost[0], 3), **later})
    return markdown(rows, dict.fromkeys(rows[0], ""))


def insert(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between `<!-- NAME -->` and `<!-- end -->` of a page.

    Raises:
        KeyError: the page has no place for a table.
    """
    content = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        content, count = pattern.subn(lambda match, table=table: f"{match[1]}{table.rstrip()}\n{match[2]}", content)
        if count != 1:
            raise KeyError(f"{page}: {count} places for {name!r}, where there should be one")
    atomic_write_text(page, content)


def write_json(path: Path, rows: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> None:
    """The numbers, for other programs."""
    goal = {"target_over_others": LEAST_OVER_OTHERS, "target_over_random": LEAST_OVER_RANDOM}
    met = {key: sum(bool(row[key]) for row in rows) for key in ("meets_others", "meets_random")}
    atomic_write_json(
        path, {"format": FORMAT, "unit": "nats a token", "goal": goal, "met": met, "domains": list(rows), **more}
    )
