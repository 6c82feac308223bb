"""Computes accuracies over questions from right and wrong answers, with the counts behind each accuracy.

Dims: C conditions, U questions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monet.errors import DataError
from monet.eval.core.bootstrap import Bootstrap, few, resample_means
from monet.eval.core.estimate import Draws

FEW_QUESTIONS = 30  # reports warn about an accuracy over fewer questions


@dataclass(frozen=True)
class Denominator:
    """The counts behind an accuracy.

    Args:
        name: benchmark or category.
        rows: number of rows in its data.
        unaskable: number of rows that cannot be asked, by reason.
        asked: number of questions put to the model; with a limit, fewer than the rows that can be asked.
        unscored: number of questions without a score, by reason.
        cut: number of scored questions whose prompt lost its beginning because it was longer than the model's context.
        missing: tasks without data.
        split: split of the data.
        examples_from: split of the few-shot examples; empty if there are none.
        sources: where the data were read from.
    """

    name: str
    rows: int
    unaskable: dict[str, int]
    asked: int
    unscored: dict[str, int]
    cut: int
    missing: list[str]
    split: str
    examples_from: str
    sources: list[str]

    @property
    def scored(self) -> int:
        """Number of questions that the accuracy is the mean over."""
        return self.asked - sum(self.unscored.values())

    @property
    def partial(self) -> bool:
        """Whether something that should have been asked has no score."""
        return bool(self.unscored or self.unaskable or self.missing)

    @property
    def faults(self) -> str:
        """Description of everything that was left out; empty if nothing was."""
        counts = [f"{number} {reason}" for reason, number in {**self.unaskable, **self.unscored}.items()]
        return "; ".join([*counts, *(f"no data for {name}" for name in self.missing)])

    @property
    def words(self) -> str:
        """All counts, e.g. "11 of 12 questions scored; 12 rows, left out: 1 longer than the context"."""
        cut = f", {self.cut} with a cut prompt" if self.cut else ""
        faults = f", left out: {self.faults}" if self.faults else ""
        return f"{self.scored} of {self.asked} questions scored; {self.rows} rows{cut}{faults}"


def caution_on_few(denominators: Iterable[Denominator]) -> str:
    """A caution that names each benchmark or category with few questions; empty if none has few.

    Args:
        denominators: several may have the same name; the one with the fewest questions counts.
    """
    counts: dict[str, int] = {}
    for one in denominators:
        counts[one.name] = min(one.scored, counts.get(one.name, one.scored))
    return few(counts, "question", FEW_QUESTIONS)


def draws(name: str, correct_CU: NDArray[np.float64], bootstrap: Bootstrap, *key: int) -> list[Draws]:
    """Accuracies of all conditions under the bootstrap, which draws the same questions for every condition.

    Args:
        name: name of the benchmark or category; part of the seed, so that benchmarks are drawn independently.
        correct_CU: 1.0 for a right answer, 0.0 for a wrong one, NaN without a score; all conditions have NaN at the
            same questions.
        bootstrap: number of draws, and the seed.
        key: further parts of the seed.

    Returns:
        One `Draws` per condition.

    Raises:
        DataError: fewer than two questions have a score.
    """
    scored_U = ~np.isnan(correct_CU).any(axis=0)
    if scored_U.sum() < 2:
        raise DataError(
            f"{name}: {int(scored_U.sum())} of {scored_U.size} questions have a score, and an interval needs two; "
            "raise the limit, or let long prompts be cut (--too_long cut)"
        )
    values_CU = correct_CU[:, scored_U]
    ones_U = np.ones(values_CU.shape[1], dtype=np.int64)
    found = resample_means(values_CU, ones_U, bootstrap.resamples, [bootstrap.seed, zlib.crc32(name.encode()), *key])
    return [Draws(value, draws_Q) for value, draws_Q in zip(found.mean_C.tolist(), found.draws_QC.T, strict=True)]
