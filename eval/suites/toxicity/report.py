"""Renders a toxicity result as tables and curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from monet.eval.core.chance import Chance
from monet.eval.core.document import Block, Curve, Report, Series, Table, Text
from monet.eval.core.estimate import ZERO, Estimate
from monet.eval.reporting.common import NOTHING, estimated
from monet.eval.reporting.wording import control_blocks, random_units
from monet.eval.scorers.scorers import describe
from monet.eval.suites.toxicity.results import ALL, Cell, Row, ToxicityResult

_TITLES = {"realtoxicityprompts": "RealToxicityPrompts", "toxigen": "ToxiGen"}
_PARTIAL = "PARTIAL: some prompts have no outcome; each number is computed over the prompts that have all their scores."


def report_of(result: ToxicityResult) -> Report:
    """The report for a renderer. It holds no generated text."""
    most = "Expected maximum toxicity" if result.samples > 1 else "Mean toxicity"
    share = "Toxicity probability" if result.samples > 1 else "Share of toxic continuations"
    blocks: list[Block] = [Text(_PARTIAL, caution=True)] if result.partial else []
    if result.masks:
        blocks.append(Text(_origin(result), caution=result.held_out is not True))
    blocks += [Text(_how(result), "What was measured"), _main_table(result, most, share)]
    if result.masks:
        blocks += [_chance_table(result, most, share), *control_blocks(result.provenance)]
    if any(row.perplexity is not None or row.general for row in result.rows):
        blocks.append(_beside_table(result))
    if len(result.groups) > 1:
        blocks.append(_group_table(result, f"{most} by group of prompts", lambda cell: cell.expected_max))
        blocks.append(_group_table(result, f"{share} by group of prompts", lambda cell: cell.probability))
    if result.masks:
        blocks += _curves(result, most, share)
    if result.partial:
        blocks.append(_missing_table(result))
    title = f"Toxicity: {_TITLES.get(result.protocol, result.protocol)}"
    return Report(title, result.sentence, blocks, result.provenance, result.to_json())


def _origin(result: ToxicityResult) -> str:
    if result.held_out is True:
        return "The masks were chosen on held-out prompts, not on those that they are judged on."
    if result.held_out is False:
        seen = result.provenance["prompts_masks_were_chosen_on"]
        return (
            f"The masks were chosen on {seen:,} of the {result.asked:,} prompts that they are judged on. This makes "
            "the masks look better than they are."
        )
    return (
        "There is no record of the prompts that the masks were chosen on. If they are these prompts, the masks look "
        "better than they are. Scored text of `monet eval toxicity-scores` holds this record."
    )


def _how(result: ToxicityResult) -> str:
    decoding, scorer = result.provenance["decoding"], result.provenance["scorer"]
    drawn = (
        "greedily"
        if decoding["temperature"] == 0
        else f"at temperature {decoding['temperature']:g} among the likeliest tokens that hold {decoding['top_p']:g}"
    )
    idle = result.provenance["masks_that_remove_nothing"]
    without = f" These masks remove no {result.unit} and change nothing: {', '.join(idle)}." if idle else ""
    return (
        f"{result.asked} prompts, {result.samples} continuation{'s' if result.samples > 1 else ''} of "
        f"{decoding['new_tokens']} tokens each, drawn {drawn}. Only the continuation is scored, by "
        f"{describe(scorer)}. A score above {result.threshold:g} is toxic. Brackets hold "
        f"{100 * result.provenance['bootstrap']['confidence']:g}% intervals over prompts; all masks share the same "
        f"draws. A score is a classifier's opinion, not a fact about the text.{without}"
    )


def _shown(result: ToxicityResult) -> list[Row]:
    """Rows of the unmasked model and of the masks; random controls are shown in columns."""
    return [result.rows[0], *result.masks]


def _main_table(result: ToxicityResult, most: str, share: str) -> Table:
    header = ["Condition", f"{result.unit.capitalize()}s", "Share %", "Prompts", most, "Change"]
    header += [share, "Change", "Silent %"]
    lines = []
    for row in _shown(result):
        cell = row.cells[ALL]
        lines.append(
            [
                row.name,
                f"{row.removed:,}",
                f"{100 * row.share:.2f}",
                f"{cell.prompts} of {result.asked}",
                estimated(cell.expected_max),
                estimated(cell.expected_max_delta, sign=True),
                estimated(cell.probability),
                estimated(cell.probability_delta, sign=True),
                NOTHING if cell.silent_share is None else f"{100 * cell.silent_share:.1f}",
            ]
        )
    note = (
        "Changes are against no mask, on the prompts that both have. Silent: samples without a visible character. "
        "Their score is 0 by definition, so a model that falls silent looks harmless; this column shows it."
    )
    return Table("Toxicity of continuations, all prompts", header, lines, note)


def _chance_table(result: ToxicityResult, most: str, share: str) -> Table:
    def words(change: Estimate | None, random: Estimate | None, chance: Chance | None) -> list[str]:
        beside = [NOTHING] * 4 if chance is None else [
            str(chance.controls), f"{chance.p:.3g}", f"{chance.q:.3g}", "yes" if chance.above else "no",
        ]  # fmt: skip
        return [estimated(change, sign=True), estimated(random, sign=True), *beside]

    lines = []
    for row in result.masks:
        cell = row.cells[ALL]
        first = words(cell.expected_max_delta, cell.random_expected_max_delta, cell.expected_max_chance)
        second = words(cell.probability_delta, cell.random_probability_delta, cell.probability_chance)
        lines += [[row.name, most.lower(), *first], [row.name, share.lower(), *second]]
    header = ["Mask", "Number", "Change", "Change, random", "Controls", "p", "q", "Below chance"]
    note = (
        f"{random_units(result.provenance['controls'], f'{result.unit}s')} are removed for comparison. Their interval "
        "is that of one control. p is the probability that a control lowers the number as much as the mask. q is the "
        "expected share of false findings (Benjamini and Hochberg) if every mask with an equal or smaller p is called "
        "a finding. Below chance: q is at most 0.05. It does not show what else a mask changes."
    )
    return Table("Masks compared with random controls, all prompts", header, lines, note)


def _beside_table(result: ToxicityResult) -> Table:
    general = list(dict.fromkeys(name for row in result.rows for name in row.general))
    header = ["Condition", "Perplexity", "Loss change", "Loss change, random"]
    header += [f"General average, {name}" for name in general]
    lines = [
        [
            row.name,
            NOTHING if row.perplexity is None else f"{row.perplexity:.2f}",
            estimated(row.loss_delta, sign=True),
            estimated(row.random_loss_delta, sign=True),
            *(f"{row.general[name]:.3f}" if name in row.general else NOTHING for name in general),
        ]
        for row in _shown(result)
    ]
    note = (
        "Perplexity and loss are measured on ordinary text, the loss in nats per token, under the same controls. The "
        f"bootstrap resamples {result.provenance.get('text_unit') or 'document'}s."
    )
    return Table("Effects of the masks on other measures", header, lines, note)


def _group_table(result: ToxicityResult, title: str, pick: Callable[[Cell], Estimate | None]) -> Table:
    header = ["Condition", *result.groups]
    sizes = ["prompts", *(f"{result.rows[0].cells[group].prompts}" for group in result.groups)]
    lines = [[row.name, *(estimated(pick(row.cells[group])) for group in result.groups)] for row in _shown(result)]
    return Table(title, header, [sizes, *lines])


def _curves(result: ToxicityResult, most: str, share: str) -> list[Curve]:
    picked: list[tuple[str, Callable[[Row], Estimate | None], Callable[[Row], Estimate | None]]] = [
        (most, lambda row: row.cells[ALL].expected_max_delta, lambda row: row.cells[ALL].random_expected_max_delta),
        (share, lambda row: row.cells[ALL].probability_delta, lambda row: row.cells[ALL].random_probability_delta),
    ]
    if result.rows[0].loss is not None:
        name = "Loss on ordinary text, nats per token"
        picked.append((name, lambda row: row.loss_delta, lambda row: row.random_loss_delta))
    return [
        Curve(
            f"Change over {result.unit}s removed: {name[0].lower()}{name[1:]}",
            f"{result.unit}s removed, %",
            "change",
            [_series("masks", result.masks, own), _series("random controls", result.masks, random)],
            note="Masks in order of size. The band of the random controls includes the spread over controls.",
        )
        for name, own, random in picked
    ]


def _series(name: str, masks: Sequence[Row], pick: Callable[[Row], Estimate | None]) -> Series:
    found = [(0.0, ZERO), *((100 * row.share, one) for row in masks if (one := pick(row)) is not None)]
    found.sort(key=lambda point: point[0])
    low = [one.value if one.low is None else one.low for _, one in found]
    high = [one.value if one.high is None else one.high for _, one in found]
    return Series(name, [x for x, _ in found], [one.value for _, one in found], low, high)


def _missing_table(result: ToxicityResult) -> Table:
    counted: dict[str, Counter[str]] = {}
    for row in result.rows:
        name = row.name if row.control is None else f"random controls of {row.label}"
        counted.setdefault(name, Counter()).update(row.cells[ALL].missing)
    reasons = list(result.missing)
    lines = [[name, *(str(found[reason]) for reason in reasons)] for name, found in counted.items()]
    note = "Run the same command again to ask the scorer for missing scores."
    return Table(f"Prompts without an outcome, of {result.asked}", ["Condition", *reasons], lines, note)
