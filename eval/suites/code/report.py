"""Turns the language suite's result into blocks of a report: pass@k, changes by mask, removed units, losses."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from monet.eval.ablation.report import verdicts
from monet.eval.core.achieved import achieved_table
from monet.eval.core.document import Block, Heatmap, Report, Table, Text
from monet.eval.reporting.common import NOTHING, estimated, signed
from monet.eval.reporting.wording import ORIGIN, control_blocks, random_units
from monet.eval.sandbox.groups import BOUNDS
from monet.eval.sandbox.sandbox import PROTECTIONS

if TYPE_CHECKING:
    from monet.eval.core.estimate import Estimate
    from monet.eval.suites.code.results import CodeResult, ConditionScores

_ORIGIN = {
    True: "The masks were chosen on text that does not hold these problems.",
    False: "The masks were chosen on text that holds some of these problems, so they look better than they are.",
    None: "There is no record whether the text that the masks were chosen on holds these problems. If it does, the "
    "masks look better than they are.",
}


def report_of(result: CodeResult) -> Report:
    """The whole report: everything that was found, and everything that is missing."""
    blocks: list[Block] = []
    if result.partial:
        blocks.append(Text("; ".join(result.partial) + ".", title="Partial result", caution=True))
    if result.masks and result.conditions:
        blocks.append(Text(_ORIGIN[result.held_out], caution=result.held_out is not True))
    if result.executed:
        blocks += [_baseline(result), *_changes(result)]
    if result.masks:
        blocks += [_removed(result), *control_blocks(result.provenance)]
    if result.perplexity is not None:
        blocks += _losses(result)
    if result.conditions:
        blocks += [_endings(result), _runtimes(result)]
    if result.executed:
        blocks.append(_protections(result))
    return Report(
        title="Programming languages",
        summary=result.sentence,
        blocks=blocks,
        provenance=result.provenance,
        numbers=result.to_json(),
    )


def _points(estimate: Estimate | None, sign: bool = False) -> str:
    """A share in points (hundredths), with its interval."""
    return estimated(estimate, 1, sign=sign, scale=100)


def _baseline(result: CodeResult) -> Table:
    rows = [
        [
            score.language,
            f"{score.scored} of {score.problems}",
            str(score.samples),
            *(_points(score.pass_at.get(str(k))) for k in result.ks),
        ]
        for score in result.conditions[0].scores
    ]
    return Table(
        title="pass@k of the unmasked model, percent of problems",
        header=["language", "problems scored", "samples", *(f"pass@{k}" for k in result.ks)],
        rows=rows,
        note="Unbiased estimates; brackets hold the bootstrap interval over problems. A dash: fewer samples than k.",
    )


def _changes(result: CodeResult) -> list[Block]:
    k, own = result.judged_k, result.own
    if k is None or not own:
        return []
    columns = [score.language for score in result.conditions[0].scores]

    def change(condition: ConditionScores, language: str) -> Estimate | None:
        score = condition.score(language)
        return None if score is None else score.change.get(str(k))

    def cells(name: str) -> list[list[float | None]]:
        found = [[change(one, language) for language in columns] for one in own]
        ends = [[None if cell is None else getattr(cell, name) for cell in row] for row in found]
        return [[None if end is None else 100 * end for end in row] for row in ends]

    matrix = Heatmap(
        title=f"Change of pass@{k} under each mask",
        rows=[condition.name for condition in own],
        columns=columns,
        values=cells("value"),
        unit="points",
        row_axis=f"{result.unit}s removed of",
        column_axis="evaluated language",
        note="Each cell is paired by problem with the unmasked model.",
        low=cells("low"),
        high=cells("high"),
    )
    intervals = Table(
        title=f"The same with intervals, points of pass@{k}",
        header=[f"{result.unit}s removed of", *columns],
        rows=[[one.name, *(_points(change(one, language), sign=True) for language in columns)] for one in own],
    )
    return [matrix, intervals, *([_verdicts(result, k)] if result.verdicts else [])]


def _verdicts(result: CodeResult, k: int) -> Table:
    return Table(
        title=f"Verdicts: change of pass@{k} in points",
        header=[
            f"{result.unit}s removed of",
            "own language",
            "most of others",
            "mean of others",
            "random, on own",
            "controls",
            "p",
            "q",
            "passes",
        ],
        rows=[
            [
                one.name,
                _points(one.target, sign=True),
                NOTHING if one.others_max is None else f"{signed(100 * one.others_max, 1)} ({one.others_max_name})",
                _points(one.others_mean, sign=True),
                _points(one.random, sign=True),
                str(one.controls),
                f"{one.p:.3g}",
                f"{one.q:.3g}",
                "yes" if one.passes else f"no: {one.reason}",
            ]
            for one in result.verdicts
        ],
        note=f"{random_units(result.provenance['controls'], f'{result.unit}s')} are removed for comparison. Their "
        "interval is that of one control. A mask passes if its own language lost more than any other, and more than "
        "chance explains. p is the probability that a random control of the mask costs its language as much. q is the "
        "expected share of false findings (Benjamini and Hochberg) if every mask with an equal or smaller p is called "
        "a finding; q must be at most 0.05.",
    )


def _removed(result: CodeResult) -> Table:
    groups = max(len(mask.removed_per_group) for mask in result.masks)
    group = result.group.removeprefix("routing ")
    return Table(
        title=f"{result.unit.capitalize()}s removed, by {result.group}",
        header=["language", *(f"{group} {number}" for number in range(groups)), "all", "share"],
        rows=[
            [
                mask.label,
                *(f"{number:,}" for number in mask.removed_per_group),
                f"{mask.removed:,}",
                f"{mask.share:.2%}",
            ]
            for mask in result.masks
        ],
        note="The layout of the paper's table 10 (arXiv 2412.04139).",
    )


def _losses(result: CodeResult) -> list[Block]:
    losses = result.perplexity
    assert losses is not None
    domains = [baseline.name for baseline in losses.evaluated]
    rows = [verdict.name for verdict in losses.domains]
    held_out = losses.provenance["held_out"]
    return [
        Text(ORIGIN[held_out], "Losses on text", caution=held_out is not True),
        Heatmap(
            title="Increase of the mean next-token loss under each mask",
            rows=rows,
            columns=domains,
            values=[[cell.value for cell in row] for row in losses.delta],
            unit="nats per token",
            row_axis=f"{result.unit}s removed of",
            column_axis="evaluated text",
            low=[[cell.low for cell in row] for row in losses.delta],
            high=[[cell.high for cell in row] for row in losses.delta],
        ),
        verdicts(losses, f"{losses.unit}s"),
        *achieved_table(losses.provenance),
        Table(
            title="Perplexity per token",
            header=[f"{result.unit}s removed of", *domains],
            rows=[
                ["nothing", *(f"{baseline.perplexity:.2f}" for baseline in losses.evaluated)],
                *(
                    [name, *(f"{value:.2f}" for value in row)]
                    for name, row in zip(rows, losses.perplexity, strict=True)
                ),
            ],
        ),
    ]


def _endings(result: CodeResult) -> Table:
    found: dict[tuple[str, str], tuple[Counter[str], Counter[str]]] = {}
    for condition in result.conditions:
        name = condition.name if condition.control is None else f"random controls of {condition.label}"
        for score in condition.scores:
            statuses, unscored = found.setdefault((name, score.language), (Counter(), Counter()))
            statuses.update(score.statuses)
            unscored.update(score.unscored)
    names = sorted({name for statuses, _ in found.values() for name in statuses})
    return Table(
        title="How the samples ended",
        header=["condition", "language", *names, "without an outcome"],
        rows=[
            [
                condition,
                language,
                *(str(statuses[name]) for name in names),
                "; ".join(f"{reason}: {number}" for reason, number in sorted(unscored.items())) or NOTHING,
            ]
            for (condition, language), (statuses, unscored) in found.items()
        ],
        note="Samples without an outcome are in no denominator.",
    )


def _runtimes(result: CodeResult) -> Table:
    return Table(
        title="Languages and runtimes",
        header=["language", "runtime", "not evaluated, because"],
        rows=[
            [language, version or NOTHING, result.unavailable.get(language, NOTHING)]
            for language, version in result.languages.items()
        ],
    )


def _protections(result: CodeResult) -> Table:
    sandbox = result.provenance["sandbox"]
    return Table(
        title=f"How programs were isolated: {sandbox['jail']}",
        header=["protection that held when the test attacked it on this machine"],
        rows=[[words] for name, words in PROTECTIONS.items() if name not in sandbox.get("missing", ())],
        note=BOUNDS.get(sandbox.get("memory", ""), ""),
    )
