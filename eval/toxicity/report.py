"""A toxicity result as tables and curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from monet.eval.document import Block, Curve, Report, Series, Table, Text
from monet.eval.results import Estimate
from monet.eval.toxicity.results import ALL, Cell, Row, ToxicityResult
from monet.eval.toxicity.scorers import describe

_TITLES = {"realtoxicityprompts": "RealToxicityPrompts", "toxigen": "ToxiGen"}
_NONE = "-"
_PARTIAL = "PARTIAL: some prompts have no outcome; each number is over the prompts that have all their scores."


def report(result: ToxicityResult) -> Report:
    """What a renderer needs; no generated text is in it."""
    most = "Expected maximum toxicity" if result.samples > 1 else "Mean toxicity"
    share = "Toxicity probability" if result.samples > 1 else "Share of toxic continuations"
    blocks: list[Block] = [Text(_how(result), "What was measured"), _main_table(result, most, share)]
    if result.partial:
        blocks.insert(0, Text(_PARTIAL, caution=True))
    if len(result.groups) > 1:
        blocks.append(_group_table(result, f"{most} by group of prompts", lambda cell: cell.expected_max))
        blocks.append(_group_table(result, f"{share} by group of prompts", lambda cell: cell.probability))
    if any(row.experts for row in result.rows):
        blocks.append(_curve(result, most, lambda row: row.cells[ALL].expected_max))
        blocks.append(_curve(result, share, lambda row: row.cells[ALL].probability))
        if result.rows[0].loss is not None:
            blocks.append(_curve(result, "Loss on ordinary text, nats a token", lambda row: row.loss))
    if result.partial:
        blocks.append(_missing_table(result))
    title = f"Toxicity: {_TITLES.get(result.protocol, result.protocol)}"
    return Report(title, result.sentence, blocks, result.provenance, result.to_json())


def _how(result: ToxicityResult) -> str:
    decoding, scorer = result.provenance["decoding"], result.provenance["scorer"]
    drawn = (
        "greedily"
        if decoding["temperature"] == 0
        else f"at temperature {decoding['temperature']:g} among the likeliest tokens that hold {decoding['top_p']:g}"
    )
    idle = result.provenance["masks_that_remove_nothing"]
    without = f" Masks that remove no expert, and so change nothing: {', '.join(idle)}." if idle else ""
    return (
        f"{result.asked} prompts, {result.samples} continuation{'s' if result.samples > 1 else ''} of "
        f"{decoding['new_tokens']} tokens each, drawn {drawn}; the continuation alone is scored, by "
        f"{describe(scorer)}. "
        f"Toxic is a score above {result.threshold:g}. Brackets are "
        f"{100 * result.provenance['bootstrap']['confidence']:g}% intervals over prompts, the same draws for all "
        "masks. Scores are a classifier's opinion, not a fact about the text."
        f"{without}"
    )


def _with_interval(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return _NONE
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def _main_table(result: ToxicityResult, most: str, share: str) -> Table:
    has_text = any(row.perplexity is not None for row in result.rows)
    general = list(dict.fromkeys(name for row in result.rows for name in row.general))
    header = [
        "Condition",
        "Experts",
        "Share %",
        "Prompts",
        most,
        "Change",
        "Random",
        share,
        "Change",
        "Random",
        "Silent %",
    ]
    header += ["Perplexity", "Loss change"] * has_text + [f"General average, {name}" for name in general]
    lines = []
    for row in result.rows:
        cell = row.cells[ALL]
        line = [
            row.name,
            f"{row.experts:,}",
            f"{100 * row.share:.2f}",
            f"{cell.prompts} of {result.asked}",
            _with_interval(cell.expected_max),
            _with_interval(cell.expected_max_delta, "+"),
            _with_interval(cell.random_expected_max_delta, "+"),
            _with_interval(cell.probability),
            _with_interval(cell.probability_delta, "+"),
            _with_interval(cell.random_probability_delta, "+"),
            _NONE if cell.silent_share is None else f"{100 * cell.silent_share:.1f}",
        ]
        if has_text:
            line += [_NONE if row.perplexity is None else f"{row.perplexity:.2f}", _with_interval(row.loss_delta, "+")]
        line += [f"{row.general[name]:.3f}" if name in row.general else _NONE for name in general]
        lines.append(line)
    note = (
        "Changes are against no mask, on the prompts that both have. Random: the change under one random mask that "
        "removes as many experts, over the seeds; a purge has to go beyond it. Silent: samples without a visible "
        "character; their score is 0 by definition, so a model that falls silent looks harmless here and shows there."
    )
    return Table("Toxicity of continuations, all prompts", header, lines, note)


def _group_table(result: ToxicityResult, title: str, pick: Callable[[Cell], Estimate | None]) -> Table:
    header = ["Condition", *result.groups]
    sizes = ["prompts", *(f"{result.rows[0].cells[group].prompts}" for group in result.groups)]
    lines = [[row.name, *(_with_interval(pick(row.cells[group])) for group in result.groups)] for row in result.rows]
    return Table(title, header, [sizes, *lines])


def _curve(result: ToxicityResult, name: str, pick: Callable[[Row], Estimate | None]) -> Curve:
    whole = result.rows[0]
    masks = [row for row in result.rows if row.label is not None and row.seed is None]
    series = [_series("masks", [whole, *masks], pick)]
    for seed in sorted({row.seed for row in result.rows if row.seed is not None}):
        series.append(_series(f"random masks, seed {seed}", [whole, *(r for r in result.rows if r.seed == seed)], pick))
    return Curve(f"{name} over experts removed", "experts removed, %", name, series, note="Masks in order of size.")


def _series(name: str, points: Sequence[Row], pick: Callable[[Row], Estimate | None]) -> Series:
    found = [(100 * row.share, estimate) for row in points if (estimate := pick(row)) is not None]
    found.sort(key=lambda point: point[0])
    return Series(
        name,
        [x for x, _ in found],
        [estimate.value for _, estimate in found],
        [estimate.low for _, estimate in found],
        [estimate.high for _, estimate in found],
    )


def _missing_table(result: ToxicityResult) -> Table:
    reasons = list(result.missing)
    lines = [[row.name, *(str(row.cells[ALL].missing.get(reason, 0)) for reason in reasons)] for row in result.rows]
    note = "What a scorer left open is asked again when the same command runs again."
    return Table(f"Prompts without an outcome, of {result.asked}", ["Condition", *reasons], lines, note)
