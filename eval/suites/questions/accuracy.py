"""Right and wrong answers -> accuracies over questions, and what each was counted over.

Dims: C conditions, U questions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monet.errors import DataError
from monet.eval.core.bootstrap import Bootstrap, few, resample_means
from monet.eval.core.estimate import Draws
from monet.eval.suites.questions.scoring import Outcome

FEW_QUESTIONS = 30  # answers are right or wrong, so fewer than these call for a caution


ORIGIN = {
    True: "The masks were chosen on other text than the questions that are asked.",
    False: "The masks were chosen on questions that are asked, which flatters them.",
    None: "It is not recorded what text the masks were chosen on; if it holds the questions, that flatters them.",
}


@dataclass(frozen=True)
class Denominator:
    """What an accuracy was counted over.

    Args:
        name: benchmark or category.
        rows: rows of its data.
        unaskable: rows that cannot be asked, by reason.
        asked: questions put to the model; fewer than the other rows where there is a limit.
        unscored: questions without a score, by reason.
        cut: scored questions whose prompt lost its beginning, for it was longer than the model's context.
        missing: tasks whose data are not there.
        split: of the data.
        examples_from: split of the few-shot examples; empty without any.
        sources: where the data lie.
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
        """Questions that the accuracy is the mean over."""
        return self.asked - sum(self.unscored.values())

    @property
    def partial(self) -> bool:
        """Something that should have been asked has no score."""
        return bool(self.unscored or self.unaskable or self.missing)

    @property
    def faults(self) -> str:
        """What was left out, in words; empty if nothing was."""
        counts = [f"{number} {reason}" for reason, number in {**self.unaskable, **self.unscored}.items()]
        return "; ".join([*counts, *(f"no data for {name}" for name in self.missing)])

    @property
    def words(self) -> str:
        """All counts, e.g. "11 of 12 questions scored; 12 rows, left out: 1 longer than the context"."""
        cut = f", {self.cut} with a cut prompt" if self.cut else ""
        faults = f", left out: {self.faults}" if self.faults else ""
        return f"{self.scored} of {self.asked} questions scored; {self.rows} rows{cut}{faults}"


def count_outcomes(outcomes: Sequence[Outcome]) -> tuple[dict[str, int], int]:
    """Questions without a score by reason, and scored ones whose prompt was cut."""
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.log_likelihoods is None:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    return reasons, sum(outcome.cut > 0 for outcome in outcomes if outcome.log_likelihoods is not None)


def caution_on_few(denominators: Iterable[Denominator]) -> str:
    """A caution that names what was counted over few questions; empty if nothing was.

    Args:
        denominators: of one name there may be several; the fewest questions count.
    """
    counts: dict[str, int] = {}
    for one in denominators:
        counts[one.name] = min(one.scored, counts.get(one.name, one.scored))
    return few(counts, "question", FEW_QUESTIONS)


def draws(name: str, correct_CU: NDArray[np.float64], bootstrap: Bootstrap, *key: int) -> list[Draws]:
    """Accuracies of all conditions under the bootstrap, the same questions drawn for each of them.

    Args:
        name: of what is asked; part of the seed, so that benchmarks are drawn independently.
        correct_CU: 1.0 where a question is answered right, 0.0 where not, NaN without a score; the conditions have
            NaN at the same questions.
        bootstrap: number of draws and seed.
        key: further parts of the seed.

    Returns:
        One a condition.

    Raises:
        DataError: fewer than two questions with a score.
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
