"""Rows of published values and of values from our results, one function per table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.costs.flops import forward_flops_per_token, parameter_counts
from monet.eval.attribution.selection import SUMMARY_NAME
from monet.eval.core.estimate import Estimate
from monet.eval.paper import published
from monet.eval.paper.models import dense_config, paper_config
from monet.eval.paper.result import Row
from monet.eval.paper.scorer import REAL_TOXICITY_PROMPTS, TOXIGEN
from monet.eval.reporting import command as report
from monet.json_text import read_json

if TYPE_CHECKING:
    from monet.eval.suites.toxicity.results import Row as ToxicityRow
    from monet.eval.suites.toxicity.results import ToxicityResult

# An empty folder: nothing has run, and only the published values are needed.
Folder = Path | None


def _row(name: str, unit: str, value: float, found: Estimate | float | None, digits: int, note: str = "") -> Row:
    estimate = Estimate(found, None, None) if isinstance(found, (int, float)) else found
    return Row(name, unit, value, estimate, digits, note)


def general(folder: Folder, paper_model: str) -> list[Row]:
    """Table 2."""
    from monet.eval.suites.questions.general_result import GeneralResult

    result = report.load(folder / "general") if folder else None
    assert result is None or isinstance(result, GeneralResult)
    rows = []
    for shots, models in published.GENERAL.items():
        ours = next((row for row in result.rows if row.shots == shots and row.label is None), None) if result else None
        *each, average = models[paper_model]
        for name, value in zip(published.BENCHMARKS, each, strict=True):
            cell = ours.cells.get(name) if ours else None
            rows.append(_row(f"{name}, {shots}-shot", "accuracy", value, cell.score if cell else None, 3))
        rows.append(_row(f"average, {shots}-shot", "accuracy", average, ours.average if ours else None, 3))
    return rows


def _ends(name: str, unit: str, ends: tuple[float, float], found: Sequence[float], over: str, digits: int) -> list[Row]:
    """Rows of the smallest and the largest of several values by size; the paper's value further from zero is second."""
    order = sorted(found, reverse=ends[1] < ends[0])
    first, last = (order[0], order[-1]) if order else (None, None)
    return [
        _row(f"{name}, least changed {over}", unit, ends[0], first, digits),
        _row(f"{name}, most changed {over}", unit, ends[1], last, digits),
    ]


def code(folder: Folder, paper_model: str) -> list[Row]:
    """Table 3."""
    from monet.eval.suites.code.results import CodeResult

    result = report.load(folder / "code") if folder else None
    assert result is None or isinstance(result, CodeResult)
    verdicts = result.verdicts if result else []
    k = result.judged_k if result else 100
    note = "" if k in (100, None) else f"ours is pass@{k}"
    own = [100 * one.target.value for one in verdicts]
    others = [100 * one.others_mean.value for one in verdicts if one.others_mean is not None]
    rows = _ends("own language", "points of pass@100", published.CODE_TARGET, own, "language", 1)
    rows += _ends("other languages", "points of pass@100", published.CODE_OTHERS, others, "language", 1)
    return [dataclasses.replace(row, note=note) for row in rows]


def code_experts(folder: Folder, paper_model: str) -> list[Row]:
    """Table 10."""
    found: list[float] = []
    if folder:
        summary = read_json(folder / "masks" / SUMMARY_NAME)
        found = sorted(float(entry["experts"]) for entry in summary["labels"].values())
    few, many = (found[0], found[-1]) if found else (None, None)
    return [
        _row("experts of the language with fewest", "experts", published.CODE_EXPERTS[0], few, 0),
        _row("experts of the language with most", "experts", published.CODE_EXPERTS[1], many, 0),
    ]


def domains(folder: Folder, paper_model: str) -> list[Row]:
    """Table 11."""
    removals = _removals(folder)
    own = [100 * one.target.value for one in removals if one.target is not None]
    others = [100 * one.others_mean.value for one in removals]
    rows = _ends("own category", "points of accuracy", published.DOMAIN_TARGET, own, "category", 2)
    return rows + _ends("other categories", "points of accuracy", published.DOMAIN_OTHERS, others, "category", 2)


def domain_experts(folder: Folder, paper_model: str) -> list[Row]:
    """Table 9."""
    removals = {one.name: one for one in _removals(folder)}
    rows = []
    for name, value in published.DOMAIN_EXPERTS.items():
        found = float(removals[name].removed) if name in removals else None
        rows.append(_row(f"experts of {name}", "experts", value, found, 0))
    share = 100 * sum(one.share for one in removals.values()) / len(removals) if removals else None
    return [*rows, _row("share, mean over categories", "% of experts", published.DOMAIN_MEAN_SHARE, share, 1)]


def _removals(folder: Folder) -> list:
    from monet.eval.suites.questions.domains_result import DomainsResult

    result = report.load(folder / "domains") if folder else None
    assert result is None or isinstance(result, DomainsResult)
    return result.removals if result else []


def toxic_prompts(folder: Folder, paper_model: str) -> list[Row]:
    """Table 4."""
    made, key = [], scorer_key(folder)
    note = REAL_TOXICITY_PROMPTS.note(key) if key else ""
    for threshold, row, share in _purges(folder, published.RTP_SHARE):
        cell, where = _cell(row, "toxic"), _where(threshold)
        most, often = published.RTP_EXPECTED_MAXIMUM[threshold], published.RTP_PROBABILITY[threshold]
        ability = row.general.get("0-shot") if row else None
        made += [
            *share,
            _row(f"expected maximum toxicity, {where}", "score", most, cell and cell.expected_max, 3, note),
            _row(f"toxicity probability, {where}", "share of prompts", often, cell and cell.probability, 3, note),
            _row(f"eight benchmarks, {where}", "accuracy", published.RTP_GENERAL[threshold], ability, 3),
        ]
    return made


def toxigen(folder: Folder, paper_model: str) -> list[Row]:
    """Table 5. The scorer's scores also decide which experts are removed."""
    made, key = [], scorer_key(folder)
    note = TOXIGEN.note(key) if key else ""
    for threshold, row, share in _purges(folder, published.TOXIGEN_SHARE):
        cell, name = _cell(row, "hate"), f"score after hateful prompts, {_where(threshold)}"
        made += [*share, _row(name, "score", published.TOXIGEN_HATE[threshold], cell and cell.expected_max, 3)]
    return [dataclasses.replace(row, note=note) for row in made]


def scorer_key(folder: Folder) -> Mapping[str, Any] | None:
    """`Scorer.key` of the scorer of a toxicity table's continuations; None before the table ran."""
    result = _toxicity_result(folder)
    return result.provenance["scorer"] if result else None


def _purges(
    folder: Folder, shares: Mapping[float, float]
) -> Iterator[tuple[float | None, ToxicityRow | None, list[Row]]]:
    """For the unmasked model and then each threshold: its result, and the row of the experts' share."""
    rows = _by_threshold(folder)
    for threshold in (None, *published.THRESHOLDS):
        row, made = rows.get(threshold), []
        if threshold is not None:
            share = 100 * row.share if row else None
            made = [_row(f"experts removed, {_where(threshold)}", "% of experts", shares[threshold], share, 1)]
        yield threshold, row, made


def _where(threshold: float | None) -> str:
    return "nothing removed" if threshold is None else f"r > {threshold:g}"


def _by_threshold(folder: Folder) -> dict[float | None, ToxicityRow]:
    result = _toxicity_result(folder)
    labels = {None: None, **{f"score {threshold}": threshold for threshold in published.THRESHOLDS}}
    rows = result.rows if result else []
    return {labels[row.label]: row for row in rows if row.control is None and row.label in labels}


def _toxicity_result(folder: Folder) -> ToxicityResult | None:
    from monet.eval.suites.toxicity import results

    result = report.load(folder / "toxicity") if folder else None
    assert result is None or isinstance(result, results.ToxicityResult)
    return result


def _cell(row: ToxicityRow | None, group: str):
    """The group of prompts that the paper reports, or all prompts if they have no groups."""
    from monet.eval.suites.toxicity.results import ALL

    return None if row is None else row.cells.get(group, row.cells[ALL])


def counts(folder: Folder, paper_model: str) -> list[Row]:
    """The part of Table 8 that needs no training."""
    configs = {
        "LLaMA": dense_config(),
        "Monet": paper_config(),
        "Monet, a router a layer": paper_config(groups=1),
    }
    rows = []
    for name, config in configs.items():
        size = sum(parameter_counts(config).values()) / 1e9 if folder else None
        rows.append(_row(f"parameters, {name}", "billions", published.PARAMETERS[name], size, 3))
    for name, config in configs.items():
        parts = forward_flops_per_token(config, 2048)
        # The paper counts attention without the causal mask, and takes 2M as 2 x 2^20 tokens.
        total = (sum(parts.values()) + parts["attention_scores"]) * 2**21 / 1e12 if folder else None
        rows.append(_row(f"forward of 2M tokens, {name}", "TFLOP", published.TFLOP[name], total, 2))
    return rows


Rows = Callable[[Folder, str], list[Row]]
