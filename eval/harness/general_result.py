"""What an evaluation of general ability found, as JSON and back, and as a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monet.errors import CheckpointError
from monet.eval.document import Block, Report, Table, Text
from monet.eval.harness.accuracy import FEW, Denominator
from monet.eval.reporting.common import bracketed, signed
from monet.eval.results import Estimate

FORMAT = "monet-general/1"


@dataclass(frozen=True)
class Cell:
    """One benchmark under one condition.

    Args:
        score: the accuracy that counts (`GeneralResult.metric`, where the benchmark's task defines it), 0 to 1.
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
        condition: its name.
        label: of the mask; None without one.
        seed: of a random mask; None for a label's own.
        experts: removed.
        shots: solved examples before each question.
        cells: by benchmark.
        average: unweighted mean over the benchmarks, as in the paper's Table 2.
        average_delta: its change against no mask.
    """

    condition: str
    label: str | None
    seed: int | None
    experts: int
    shots: int
    cells: dict[str, Cell]
    average: Estimate
    average_delta: Estimate


@dataclass(frozen=True)
class GeneralResult:
    """Accuracies of all conditions.

    Args:
        rows: conditions, by number of shots; the first of each is the model without a mask.
        denominators: by number of shots, what each benchmark was counted over.
        metric: "acc_norm" or "acc".
        provenance: model, masks, data, settings, versions, date.
    """

    rows: list[Row]
    denominators: dict[str, list[Denominator]]
    metric: str
    provenance: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Something that should have been asked has no score."""
        return any(denominator.partial for found in self.denominators.values() for denominator in found)

    @property
    def sentence(self) -> str:
        """The averages, in words."""
        told = []
        for shots in dict.fromkeys(row.shots for row in self.rows):
            first, *rest = [row for row in self.rows if row.shots == shots]
            masked = [row.average_delta.value for row in rest if row.seed is None]
            random = [row.average_delta.value for row in rest if row.seed is not None]
            words = f"{shots}-shot average over {len(first.cells)} benchmarks {first.average.value:.3f}"
            if masked:
                words += f", under masks {signed(min(masked), 3)} to {signed(max(masked), 3)}"
            if random:
                words += f", under random masks of equal size {signed(min(random), 3)} to {signed(max(random), 3)}"
            told.append(words)
        limit = self.provenance.get("limit")
        looked = f" (at most {limit} questions a task)" if limit else ""
        return "; ".join(told) + looked + (" (partial: some questions have no score)" if self.partial else "")

    @property
    def counts(self) -> str:
        """Questions scored, of how many rows, a line a benchmark and number of shots."""
        found = self.denominators.items()
        return "\n".join(f"{shots}-shot {one.name}: {one.words}" for shots, parts in found for one in parts)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        content = {
            "format": FORMAT,
            "partial": self.partial,
            **dataclasses.asdict(self),
        }
        return json.loads(json.dumps(content, allow_nan=False))

    @classmethod
    def from_json(cls, content: Any) -> GeneralResult:
        """Build a result from what `to_json` gave.

        Raises:
            CheckpointError: not the layout of this version.
        """
        try:
            if content["format"] != FORMAT:
                raise CheckpointError(f"format {content['format']!r} where {FORMAT!r} is read")
            rows = [
                Row(
                    **{
                        **row,
                        "cells": {
                            name: Cell(Estimate(**cell["score"]), cell["acc"], Estimate(**cell["delta"]))
                            for name, cell in row["cells"].items()
                        },
                        "average": Estimate(**row["average"]),
                        "average_delta": Estimate(**row["average_delta"]),
                    }
                )
                for row in content["rows"]
            ]
            denominators = {
                shots: [Denominator(**one) for one in found] for shots, found in content["denominators"].items()
            }
            return cls(rows, denominators, content["metric"], content["provenance"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"no result of general ability ({error!r}); write one with `monet eval general`"
            ) from None

    def report(self) -> Report:
        """Tables of accuracies, changes and denominators."""
        blocks: list[Block] = []
        for shots in dict.fromkeys(row.shots for row in self.rows):
            rows = [row for row in self.rows if row.shots == shots]
            blocks += [_accuracies(rows, shots), *_changes(rows, shots)]
        blocks += [_denominators(self.denominators), Text(_HOW, "How it was measured")]
        title = "General ability under masks" if len({row.label for row in self.rows}) > 1 else "General ability"
        return Report(title, self.sentence, blocks, self.provenance, self.to_json())


_HOW = (
    "Prompts, few-shot examples and the scoring of options are lm-evaluation-harness's. In cloze style the text of "
    "each option is scored and the likeliest taken; acc_norm divides log-likelihoods by the option's characters where "
    "the task defines that. MMLU counts all questions alike, ARC is the mean of easy and challenge, the average is "
    "unweighted over benchmarks. Intervals are paired bootstraps: the same questions are drawn again for all masks. A "
    "change whose interval holds zero, or that a random mask of equal size makes too, says nothing about the mask."
)


def _accuracies(rows: Sequence[Row], shots: int) -> Table:
    names = list(rows[0].cells)
    body = []
    for label, members in _grouped(rows).items():
        scores = [f"{np.mean([row.cells[name].score.value for row in members]):.3f}" for name in names]
        body.append([label, *scores, f"{np.mean([row.average.value for row in members]):.3f}"])
    return Table(
        f"Accuracy, {shots}-shot (share of questions answered right)",
        ["", *names, "average"],
        body,
        "The layout of the paper's Table 2. Random masks remove as many experts of every routing group as the mask "
        "they are named after; their rows are means over seeds.",
    )


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows under the names they are shown by: random masks of all seeds together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.condition if row.seed is None else f"random like {row.label}", []).append(row)
    return found


def _changes(rows: Sequence[Row], shots: int) -> list[Table]:
    if len(rows) < 2:
        return []
    names = list(rows[0].cells)
    body = []
    for row in rows[1:]:
        cells = [_interval(row.cells[name].delta) for name in names]
        body.append([row.condition, f"{row.experts:,}", *cells, _interval(row.average_delta)])
    return [
        Table(
            f"Change of accuracy against no mask, {shots}-shot (points)",
            ["", "experts", *names, "average"],
            body,
            f"Points are hundredths; in brackets the interval. {FEW}",
        )
    ]


def _interval(found: Estimate) -> str:
    return bracketed(100 * found.value, 100 * found.low, 100 * found.high, 1)


def _denominators(found: dict[str, list[Denominator]]) -> Table:
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
        "Asked are fewer than rows under a limit. A cut prompt was longer than the model's context and lost its "
        "beginning, as the harness does it. Examples drawn from the split that is asked leave out the question itself.",
    )
