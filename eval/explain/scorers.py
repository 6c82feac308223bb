"""From excerpts and answers to scores: balanced accuracy, share of odd ones found, each next to its controls.

Dims: Q resamples, C explanations (own, permuted, empty), P active and N inactive excerpts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monet.eval.core.bootstrap import Bootstrap, interval, resample_means
from monet.eval.explain.excerpts import Excerpt
from monet.eval.explain.material import Material

ScorerName = Literal["detection", "fuzzing", "intruder", "embedding"]
# Excerpts of each kind that a score needs, and marked ones next to each odd one.
FEWEST = 2
OTHERS = 4


@dataclass(frozen=True)
class Found:
    """What one explanation scored on one unit.

    Attributes:
        value: the score, 0 to 1.
        draws_Q: the score on resamples of the excerpts.
        failed: missing answers.
        hits, alarms: see `Score`.
    """

    value: float
    draws_Q: NDArray[np.float64]
    failed: int
    hits: float | None = None
    alarms: float | None = None

    def ends(self, bootstrap: Bootstrap) -> tuple[float, float]:
        """The bootstrap interval."""
        return interval(self.draws_Q, bootstrap.confidence)


def shares(size: int, bootstrap: Bootstrap, salt: int) -> NDArray[np.float64]:
    """(Q, size) float64: how much of each resample each of `size` items makes up."""
    return resample_means(np.eye(size), np.ones(size, np.int64), bootstrap.resamples, [bootstrap.seed, salt]).draws_QC


def accuracy(active: Sequence[bool | None], inactive: Sequence[bool | None], bootstrap: Bootstrap) -> Found:
    """Balanced accuracy: mean of the share of active excerpts accepted and of inactive ones refused.

    A missing answer (None) is wrong.

    Args:
        active, inactive: answers for both kinds; at least two of each.
        bootstrap: settings of the interval, which resamples both kinds by themselves.
    """
    right_P = np.array([one is True for one in active], np.float64)
    right_N = np.array([one is False for one in inactive], np.float64)
    draws_Q = (shares(len(right_P), bootstrap, 0) @ right_P + shares(len(right_N), bootstrap, 1) @ right_N) / 2
    failed = sum(one is None for one in [*active, *inactive])
    value = float(right_P.mean() + right_N.mean()) / 2
    return Found(value, draws_Q, failed, float(right_P.mean()), 1 - float(right_N.mean()))


def area(similar_P: NDArray[np.float64], similar_N: NDArray[np.float64], bootstrap: Bootstrap) -> Found:
    """Area under the ROC curve: how often an active excerpt is more similar than an inactive one; ties count half.

    Args:
        similar_P, similar_N: similarity of active and inactive excerpts to the explanation; NaN is a missing answer and
            loses every comparison.
        bootstrap: as for `accuracy`.
    """
    wins_PN = (similar_P[:, None] > similar_N) + 0.5 * (similar_P[:, None] == similar_N)
    draws_Q = ((shares(len(similar_P), bootstrap, 0) @ wins_PN) * shares(len(similar_N), bootstrap, 1)).sum(1)
    failed = int(np.isnan(similar_P).sum() + np.isnan(similar_N).sum())
    return Found(float(wins_PN.mean()), draws_Q, failed)


def share_found(answers: Sequence[int | None], places: Sequence[int], bootstrap: Bootstrap) -> Found:
    """Share of sets whose odd excerpt was named; a missing answer is wrong."""
    right_S = np.array([answer == place for answer, place in zip(answers, places, strict=True)], np.float64)
    draws_Q = shares(len(right_S), bootstrap, 0) @ right_S if len(right_S) > 1 else np.full(2, right_S.mean())
    return Found(float(right_S.mean()), draws_Q, sum(answer is None for answer in answers))


def sets_of(material: Material, seed: Sequence[int]) -> tuple[list[list[Excerpt]], list[int]]:
    """Sets of four active excerpts and an inactive one, and the place of the inactive one in each.

    The four come from neighbouring intervals. No excerpt is in two sets.

    Args:
        material: excerpts of a unit.
        seed: seed of the places; it must differ between units, so that no place is likelier than another.
    """
    generator = np.random.default_rng(seed)
    active = sorted(material.active, key=lambda one: (-one.interval, one.window))
    sets, places = [], []
    for number, odd in enumerate(material.inactive[: len(active) // OTHERS]):
        members = active[number * OTHERS : (number + 1) * OTHERS]
        place = int(generator.integers(OTHERS + 1))
        sets.append([*members[:place], odd, *members[place:]])
        places.append(place)
    return sets, places


def mixed_sets(sets: Sequence[Sequence[list[Excerpt]]], places: Sequence[Sequence[int]]) -> list[list[list[Excerpt]]]:
    """The control of the sets: the active excerpts of each set come from other units, a different one for each.

    Args:
        sets: sets of each unit.
        places: place of the odd excerpt in each.
    """
    own = [
        [one for members, place in zip(lists, where, strict=True) for n, one in enumerate(members) if n != place]
        for lists, where in zip(sets, places, strict=True)
    ]
    others = [unit for unit, few in enumerate(own) if few]
    found = []
    for unit, (lists, where) in enumerate(zip(sets, places, strict=True)):
        around = [other for other in others if other != unit]
        turn, mixed = 0, []
        for members, place in zip(lists, where, strict=True):
            new = []
            for n, one in enumerate(members):
                if n == place or len(around) < OTHERS:
                    new.append(one)
                    continue
                source = own[around[(unit * 7 + turn) % len(around)]]
                new.append(source[turn % len(source)])
                turn += 1
            mixed.append(new)
        found.append(mixed if len(around) >= OTHERS else [])
    return found


def precision(hits: float, alarms: float, rate: float) -> float | None:
    """Share of active excerpts among the accepted ones, if a share `rate` of all excerpts is active."""
    accepted = hits * rate + alarms * (1 - rate)
    return hits * rate / accepted if accepted > 0 else None
