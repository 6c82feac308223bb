"""The language suite's result as blocks of a report: pass@k, what each mask changed, experts a language, losses."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from monet.eval.code.groups import BOUNDS
from monet.eval.code.sandbox import PROTECTIONS
from monet.eval.document import Block, Heatmap, Report, Table, Text
from monet.eval.reporting import common

if TYPE_CHECKING:
    from monet.eval.code.results import CodeResult, ConditionScores, Figure

_NOTHING = "-"


def report_of(result: CodeResult) -> Report:
    """Everything that was found, and everything that was not."""
    blocks: list[Block] = []
    if result.partial:
        blocks.append(Text("; ".join(result.partial) + ".", title="Partial result"))
    if result.executed:
        blocks += [_baseline(result), *_changes(result)]
    if result.masks:
        blocks.append(_experts(result))
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


def _points(figure: Figure | None, signed: bool = False) -> str:
    """A share as points of a hundred, with its interval."""
    if figure is None:
        return _NOTHING

    def told(value: float) -> str:
        return common.signed(100 * value, 1) if signed else f"{100 * value:.1f}"

    if figure.low is None or figure.high is None:
        return told(figure.value)
    return f"{told(figure.value)} ({told(figure.low)} to {told(figure.high)})"


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
        title="pass@k of the model as it is, percent of problems",
        header=["language", "problems scored", "samples", *(f"pass@{k}" for k in result.ks)],
        rows=rows,
        note="Unbiased estimates; in brackets the bootstrap interval over problems. A dash: fewer samples than k.",
    )


def _own(result: CodeResult) -> list[ConditionScores]:
    return [condition for condition in result.conditions if condition.label is not None and condition.seed is None]


def _changes(result: CodeResult) -> list[Block]:
    k, own = result.headline_k, _own(result)
    if k is None or not own:
        return []
    columns = [score.language for score in result.conditions[0].scores]

    def change(condition: ConditionScores, language: str) -> Figure | None:
        score = condition.score(language)
        return None if score is None else score.change.get(str(k))

    def cell(condition: ConditionScores, language: str) -> float | None:
        figure = change(condition, language)
        return None if figure is None else 100 * figure.value

    values = [[cell(condition, language) for language in columns] for condition in own]
    matrix = Heatmap(
        title=f"Change of pass@{k} under each mask",
        rows=[condition.name for condition in own],
        columns=columns,
        values=values,
        unit="points",
        row_axis="experts removed of",
        column_axis="evaluated language",
        note="Each cell is paired by problem with the model as it is.",
    )
    intervals = Table(
        title=f"The same with intervals, points of pass@{k}",
        header=["experts removed of", *columns],
        rows=[[one.name, *(_points(change(one, language), signed=True) for language in columns)] for one in own],
    )
    heads = Table(
        title=f"Own language, other languages, random experts: change of pass@{k} in points",
        header=["experts removed of", "own language", "mean of the others", "random experts, as many"],
        rows=[
            [
                head.label,
                _points(head.target, signed=True),
                _NOTHING if head.others_mean is None else common.signed(100 * head.others_mean, 1),
                ", ".join(common.signed(100 * value, 1) for value in head.random_per_seed) or _NOTHING,
            ]
            for head in result.headlines()
        ],
        note="Random masks take as many experts of every routing group; a number for each seed, on the own language.",
    )
    return [matrix, intervals, heads]


def _experts(result: CodeResult) -> Table:
    groups = max(len(mask.experts_per_group) for mask in result.masks)
    return Table(
        title="Experts removed, by routing group",
        header=["language", *(f"group {number}" for number in range(groups)), "all", "share"],
        rows=[
            [
                mask.label,
                *(f"{number:,}" for number in mask.experts_per_group),
                f"{mask.experts:,}",
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
    return [
        Heatmap(
            title="Increase of the mean next-token loss under each mask",
            rows=rows,
            columns=domains,
            values=[[cell.value for cell in row] for row in losses.delta],
            unit="nats a token",
            row_axis="experts removed of",
            column_axis="evaluated text",
        ),
        Table(
            title="Perplexity a token",
            header=["experts removed of", *domains],
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
    found: list[tuple[str, str, Counter[str], Counter[str]]] = [
        (condition.name, score.language, Counter(score.statuses), Counter(score.unscored))
        for condition in result.conditions
        for score in condition.scores
    ]
    names = sorted({name for _, _, statuses, _ in found for name in statuses})
    return Table(
        title="How the samples ended",
        header=["condition", "language", *names, "without an outcome"],
        rows=[
            [
                condition,
                language,
                *(str(statuses[name]) for name in names),
                "; ".join(f"{reason}: {number}" for reason, number in sorted(unscored.items())) or _NOTHING,
            ]
            for condition, language, statuses, unscored in found
        ],
        note="What has no outcome is in no denominator.",
    )


def _runtimes(result: CodeResult) -> Table:
    return Table(
        title="Languages and runtimes",
        header=["language", "runtime", "not evaluated, because"],
        rows=[
            [language, version or _NOTHING, result.unavailable.get(language, _NOTHING)]
            for language, version in result.languages.items()
        ],
    )


def _protections(result: CodeResult) -> Table:
    sandbox = result.provenance["sandbox"]
    return Table(
        title=f"How programs were shut in: {sandbox['jail']}",
        header=["protection that held when it was attacked on this machine"],
        rows=[[words] for name, words in PROTECTIONS.items() if name not in sandbox.get("missing", ())],
        note=BOUNDS.get(sandbox.get("memory", ""), ""),
    )
