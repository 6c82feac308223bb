"""The result of an evaluation of general ability, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from monet.errors import ConfigError
from monet.eval.choices.texts import ORIGIN
from monet.eval.core.document import Block, Report, Table, Text
from monet.eval.core.effects import Effect, Effects
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result
from monet.eval.reporting.common import bracketed, signed
from monet.eval.reporting.wording import control_blocks, random_units
from monet.eval.suites.questions.accuracy import Denominator, caution_on_few


@dataclass(frozen=True)
class Cell:
    """One benchmark under one condition.

    Args:
        score: the accuracy that counts (`GeneralResult.metric`, if the benchmark's task defines it), 0 to 1.
        acc: accuracy by plain log-likelihood.
        delta: change of `score` against no mask.
    """

    score: Estimate
    acc: float
    delta: Estimate


@dataclass(frozen=True)
class Row:
    """One condition at one number of shots.

    Args:
        condition: name of the condition.
        label: label of the mask; None without a mask.
        control: number of a random control; None for the label's own mask.
        removed: number of removed units; for a control, that of the mask that the control matches.
        shots: solved examples before each question.
        cells: cells by benchmark.
        average: unweighted mean over the benchmarks, as in the paper's Table 2.
        average_delta: change of `average` against no mask.
        controls, p, q: for a mask: the number of controls, the probability that a control costs as much on average, and
            the false discovery rate over all masks at this number of shots (`monet.eval.core.chance`). None for all
            other rows.
    """

    condition: str
    label: str | None
    control: int | None
    removed: int
    shots: int
    cells: dict[str, Cell]
    average: Estimate
    average_delta: Estimate
    controls: int | None
    p: float | None
    q: float | None


@dataclass(frozen=True)
class GeneralResult(Result):
    """Accuracies of all conditions.

    Args:
        unit: the removed unit ("expert", "neuron").
        rows: conditions, by number of shots; the first of each is the model without a mask.
        random: for each mask and number of shots, a single one of its controls. Values are means over the controls, and
            intervals hold the spread over controls as well as over questions.
        denominators: the counts behind each benchmark, by number of shots.
        metric: "acc_norm" or "acc".
        provenance: model, masks, data, settings, versions, date.
    """

    FORMAT: ClassVar[str] = "monet-general/2"
    COMMAND: ClassVar[str] = "monet eval general"
    TOLD: ClassVar[tuple[str, ...]] = ("partial", "sentence")

    unit: str
    rows: list[Row]
    random: list[Row]
    denominators: dict[str, list[Denominator]]
    metric: str
    provenance: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Whether something that should have been asked has no score."""
        return any(denominator.partial for found in self.denominators.values() for denominator in found)

    @property
    def sentence(self) -> str:
        """A sentence with the averages."""
        told = []
        for shots in dict.fromkeys(row.shots for row in self.rows):
            first, *rest = [row for row in self.rows if row.shots == shots]
            masked = [row.average_delta.value for row in rest if row.control is None]
            random = [row.average_delta.value for row in rest if row.control is not None]
            words = f"{shots}-shot average over {len(first.cells)} benchmarks {first.average.value:.3f}"
            if masked:
                words += f", under masks {signed(min(masked), 3)} to {signed(max(masked), 3)}"
            if random:
                words += f", under random controls {signed(min(random), 3)} to {signed(max(random), 3)}"
            told.append(words)
        limit = self.provenance.get("limit")
        looked = f" (at most {limit} questions per task)" if limit else ""
        return "; ".join(told) + looked + (" (partial: some questions have no score)" if self.partial else "")

    def lines(self) -> list[str]:
        """What a command prints of its result, with the numbers of questions."""
        return [*super().lines(), self.counts]

    @property
    def counts(self) -> str:
        """Scored questions and rows, one line per benchmark and number of shots."""
        found = self.denominators.items()
        return "\n".join(f"{shots}-shot {one.name}: {one.words}" for shots, parts in found for one in parts)

    def report(self) -> Report:
        """Tables of accuracies, changes and denominators."""
        blocks: list[Block] = []
        masked = any(row.label is not None for row in self.rows)
        if masked:
            held_out = self.provenance["held_out"]
            blocks.append(Text(ORIGIN[held_out], caution=held_out is not True))
        if caution := caution_on_few(one for found in self.denominators.values() for one in found):
            blocks.append(Text(caution, caution=True))
        removed = random_units(self.provenance["controls"], f"{self.unit}s")
        for shots in dict.fromkeys(row.shots for row in self.rows):
            rows, random = ([row for row in of if row.shots == shots] for of in (self.rows, self.random))
            own = [row for row in rows if row.control is None]
            blocks.append(_accuracies([*own, *random], shots, removed))
            if masked:
                blocks.append(_changes(own[1:], random, shots))
        blocks += control_blocks(self.provenance)
        blocks += [_denominators(self.denominators), Text(_HOW, "How it was measured")]
        title = "General ability under masks" if masked else "General ability"
        return Report(title, self.sentence, blocks, self.provenance, self.to_json())

    def effects(self) -> Effects:
        """One row per mask and number of shots: changes of the average accuracy in points. There is no verdict.

        Raises:
            ConfigError: the result has no mask.
        """
        several = len({row.shots for row in self.rows}) > 1
        random = {(row.label, row.shots): row.average_delta.times(100) for row in self.random}
        rows = [
            Effect(
                f"{row.label}, {row.shots}-shot" if several else str(row.label),
                row.average_delta.times(100),
                None,
                None,
                "",
                random.get((row.label, row.shots)),
                row.controls or 0,
                1.0 if row.p is None else row.p,
                1.0 if row.q is None else row.q,
                None,
                "",
            )
            for row in self.rows
            if row.label is not None and row.control is None
        ]
        if not rows:
            raise ConfigError("a result of `monet eval general` without masks has nothing to compare over seeds")
        return Effects(
            "Change of the average accuracy",
            "points",
            self.provenance["bootstrap"]["confidence"],
            self.unit,
            {"data": self.provenance["data"], "style": self.provenance["style"], "metric": self.metric},
            self.provenance["held_out"],
            rows,
        )


_HOW = (
    "lm-evaluation-harness makes the prompts and few-shot examples and scores the options. Cloze style scores the "
    "text of each option and takes the likeliest. acc_norm divides log-likelihoods by the option's number of "
    "characters if the task defines that. All questions of MMLU count equally, ARC is the mean of easy and challenge, "
    "and the average over benchmarks is unweighted. Intervals are paired bootstraps: every draw takes the same "
    "questions for all masks. If the interval of a change holds zero, or if random controls change as much, the "
    "change says nothing about the mask."
)


def _accuracies(rows: Sequence[Row], shots: int, removed: str) -> Table:
    names = list(rows[0].cells)
    return Table(
        f"Accuracy, {shots}-shot (share of questions answered right)",
        ["", *names, "average"],
        [
            [row.condition, *(f"{row.cells[name].score.value:.3f}" for name in names), f"{row.average.value:.3f}"]
            for row in rows
        ],
        f"The layout of the paper's Table 2. {removed} are removed for comparison. Such a row is named after a mask "
        "and is the mean over the controls of that mask.",
    )


def _changes(masked: Sequence[Row], random: Sequence[Row], shots: int) -> Table:
    names = list(masked[0].cells)
    of_label = {row.label: row for row in random}
    body = []
    for row in masked:
        chance = ["", "", ""] if row.p is None else [str(row.controls), f"{row.p:.3g}", f"{row.q:.3g}"]
        body.append([*_change(row, names), *chance])
        if row.label in of_label:
            body.append([*_change(of_label[row.label], names), "", "", ""])
    return Table(
        f"Change of accuracy against no mask, {shots}-shot (points)",
        ["", "removed", *names, "average", "controls", "p", "q"],
        body,
        "A point is a hundredth; brackets hold the interval. p is the probability that a random control of the mask "
        "costs as much on average. q is the expected share of false findings (Benjamini and Hochberg) if every mask "
        "with an equal or smaller p is called a finding. The interval of a random row is that of one control.",
    )


def _change(row: Row, names: Sequence[str]) -> list[str]:
    cells = [_interval(row.cells[name].delta) for name in names]
    return [row.condition, f"{row.removed:,}", *cells, _interval(row.average_delta)]


def _interval(found: Estimate) -> str:
    low, high = found.ends
    return bracketed(100 * found.value, 100 * low, 100 * high, 1)


def _denominators(found: Mapping[str, list[Denominator]]) -> Table:
    body = [
        [
            one.name,
            shots,
            f"{one.rows:,}",
            f"{one.asked:,}",
            f"{one.scored:,}",
            f"{one.cut:,}",
            one.split,
            one.examples_from or "none",
            one.faults or "nothing",
        ]
        for shots, benchmarks in found.items()
        for one in benchmarks
    ]
    header = ["", "shots", "rows", "asked", "scored", "prompt cut", "split", "examples from", "left out"]
    return Table(
        "Questions",
        header,
        body,
        "With a limit, fewer questions are asked than there are rows. A cut prompt was longer than the model's "
        "context and lost its beginning, as in the harness. A question is left out if its own few-shot examples hold "
        "the same question.",
    )
