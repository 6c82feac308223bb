"""Turns several results into blocks of a report: each mask over seeds, every result, one figure, the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from monet.eval.core.document import Block, Dots, Marks, Report, Table, Text
from monet.eval.reporting.common import NOTHING, bracketed, digits_for, estimated, signed
from monet.eval.reporting.wording import HOW_JUDGED

if TYPE_CHECKING:
    from monet.eval.core.estimate import Estimate
    from monet.eval.core.seeds import SeedSpread
    from monet.eval.reporting.seeds import Group, MaskOverSeeds, SeedsResult


def report_of(result: SeedsResult) -> Report:
    """The whole report of a comparison over seeds."""
    blocks: list[Block] = [
        *(Text(words, caution=True) for words in result.cautions),
        _over_seeds(result),
        _dots(result),
        _every_result(result),
        _models(result),
        Text(_how(result), "How the numbers are made"),
    ]
    title = f"{result.quantity}, over training seeds"
    return Report(title, result.sentence, blocks, result.provenance, result.to_json())


def _digits(result: SeedsResult) -> int:
    values = [abs(row.target.value) for _, mask in _rows(result) for row in mask.effects.values()]
    return digits_for(max(values, default=1.0)) + 1


def _rows(result: SeedsResult) -> Iterator[tuple[Group, MaskOverSeeds]]:
    """Pairs of a group and a mask; the pairs of one mask are adjacent."""
    names = dict.fromkeys(mask.name for group in result.groups for mask in group.masks)
    for name in names:
        for group in result.groups:
            yield from ((group, mask) for mask in group.masks if mask.name == name)


def _over_seeds(result: SeedsResult) -> Table:
    digits, several = _digits(result), len(result.groups) > 1
    rows = []
    for group, mask in _rows(result):
        spread, seeds, found = mask.target, len(mask.effects), list(mask.effects.values())
        rows.append(
            [
                mask.name,
                *([group.name] if several else []),
                str(seeds),
                _spread(spread, [one.target for one in found], digits),
                NOTHING if spread is None else f"{spread.sd_seeds:.{digits}f}",
                NOTHING if spread is None or spread.sd_text is None else f"{spread.sd_text:.{digits}f}",
                (None if spread is None else spread.larger) or NOTHING,
                _spread(mask.others_mean, [one.others_mean for one in found], digits),
                _spread(mask.random, [one.random for one in found], digits),
                NOTHING if mask.passed is None else f"{mask.passed} of {seeds}",
            ]
        )
    return Table(
        f"{result.quantity} over seeds, {result.unit}",
        ["removed", *(["model"] if several else []), "seeds", "target, mean over seeds", "SD over seeds",
         "SD over text", "larger SD", "others, mean", "random, on target", "seeds that pass"],
        rows,
        f"Brackets hold the {result.confidence:.0%} interval of the mean over seeds, by Student's t. The interval "
        "contains the spread over seeds on this text, but not the spread over text. SD is the standard deviation. SD "
        "over seeds is that of the models' values, with n - 1. SD over text is that of one model's value, as the root "
        "mean square over the models. A single seed has its value instead of a mean.",
    )  # fmt: skip


def _spread(spread: SeedSpread | None, values: Sequence[Estimate | None], digits: int) -> str:
    """The mean over seeds with its interval; a single seed has its value."""
    if spread is not None:
        return bracketed(spread.mean, spread.low, spread.high, digits)
    return " ".join(signed(one.value, digits) for one in values if one is not None) or NOTHING


def _dots(result: SeedsResult) -> Dots:
    names = list(dict.fromkeys(mask.name for group in result.groups for mask in group.masks))
    marks = []
    for colour, group in enumerate(result.groups):
        by_name = {mask.name: mask for mask in group.masks}
        for run in group.runs:
            found = [by_name[name].effects.get(run.name) if name in by_name else None for name in names]
            targets = [None if one is None else one.target for one in found]
            value, low, high = _columns(targets, "value", "low", "high")
            marks.append(Marks(run.name, value, low, high, colour))
        means = [by_name[name].target if name in by_name else None for name in names]
        if any(mean is not None for mean in means):
            value, low, high = _columns(means, "mean", "low", "high")
            marks.append(Marks(f"{group.name}, mean over seeds", value, low, high, colour, strong=True))
    return Dots(
        "Every seed and the mean over seeds",
        names,
        f"{result.quantity}, {result.unit}",
        marks,
        "removed",
        "Changes of the target of each mask. The line of a seed is its interval over text. The line of a mean is its "
        "interval over seeds.",
    )


def _columns(found: Sequence[Any], *names: str) -> list[list[float | None]]:
    """Attributes of every present object, one list per object."""
    return [[None if one is None else getattr(one, name) for one in found] for name in names]


def _every_result(result: SeedsResult) -> Table:
    digits = _digits(result)
    rows = []
    for _, mask in _rows(result):
        for run, one in mask.effects.items():
            worst = NOTHING if one.others_max is None else f"{signed(one.others_max, digits)} ({one.others_max_name})"
            verdict = NOTHING if one.passes is None else "yes" if one.passes else "no"
            rows.append(
                [
                    mask.name,
                    run,
                    estimated(one.target, digits, sign=True),
                    estimated(one.others_mean, digits, sign=True),
                    worst,
                    estimated(one.random, digits, sign=True),
                    str(one.controls),
                    f"{one.p:.3g}",
                    f"{one.q:.3g}",
                    verdict,
                ]
            )
    judged = any(one.passes is not None for _, mask in _rows(result) for one in mask.effects.values())
    return Table(
        f"Every result, {result.unit}",
        ["removed", "result", "target", "mean of others", "worst other", "random, on target", "controls", "p", "q",
         "passes"],
        rows,
        "Brackets hold the interval over text; that of random controls is over text and controls."
        f" {HOW_JUDGED if judged else ''}".rstrip(),
    )  # fmt: skip


def _models(result: SeedsResult) -> Table:
    rows = []
    for group in result.groups:
        for run in group.runs:
            origin, training = run.origin, run.training
            rows.append(
                [
                    run.name,
                    group.name,
                    NOTHING if origin is None else origin.architecture,
                    NOTHING if origin is None else origin.config_digest,
                    *(
                        NOTHING if value is None else str(value)
                        for value in (training.seed, training.data_seed, training.step)
                    ),
                    run.model_fingerprint,
                ]
            )
    return Table(
        "Models",
        ["result", "model", "architecture", "configuration", "seed of weights", "seed of data order", "step",
         "fingerprint"],
        rows,
        "Seeds and step come from the record of `monet export`. The configuration is a digest that excludes weights.",
    )  # fmt: skip


def _how(result: SeedsResult) -> str:
    return (
        "Results form a group if their models agree in architecture, configuration, training text and step, unless "
        f"--group names the groups. All results were measured on the same text. The mean over seeds has a "
        f"{result.confidence:.0%} interval of Student's t with n - 1 degrees of freedom, which assumes normally "
        "distributed "
        "values of the models.\n\n"
        "The standard deviation over text comes from each result's interval over text: its width divided by the width "
        "for a normal distribution with standard deviation 1. If the spread over text is larger, more text makes the "
        "number more certain. If the spread over seeds is larger, only more seeds do."
    )
