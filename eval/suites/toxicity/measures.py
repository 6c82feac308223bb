"""Computes numbers of conditions from scores of samples, with intervals over prompts and random controls.

Dims: C conditions, U prompts (or documents), Q resamples.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monet.eval.core.bootstrap import Bootstrap, resample_means
from monet.eval.core.chance import Chance, chances
from monet.eval.core.conditions import Condition
from monet.eval.core.estimate import Draws, Estimate, one_of
from monet.eval.core.intervention import share
from monet.eval.core.paired import paired
from monet.eval.core.window_losses import WindowLosses
from monet.eval.suites.toxicity.prompts import Prompt
from monet.eval.suites.toxicity.results import ALL, Cell, Row, groups_with_all
from monet.eval.suites.toxicity.scoring import Scores, is_said

_METRICS = (0, 1)  # expected maximum, probability


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of every prompt under one condition.

    Args:
        expected_max_U: float64, highest score among the prompt's samples; NaN if a sample has no score.
        toxic_U: 1.0 if a sample is above the threshold, else 0.0; NaN if a sample has no score.
        mean_U: mean score of the samples; NaN if a sample has no score.
        silent_U: share of samples without a visible character; NaN for prompts without continuations.
        reason_U: why there is no number; empty if there is one.
    """

    expected_max_U: NDArray[np.float64]
    toxic_U: NDArray[np.float64]
    mean_U: NDArray[np.float64]
    silent_U: NDArray[np.float64]
    reason_U: list[str]


def outcomes(
    prompts: Sequence[Prompt],
    scored: Iterable[tuple[Mapping[str, Sequence[str]], Scores]],
    unreadable: Mapping[str, str],
    threshold: float,
) -> Outcomes:
    """Compute the numbers of each prompt.

    A prompt that lacks a score has no number, because a maximum over fewer samples is another quantity.

    Args:
        prompts: all prompts.
        scored: continuations by prompt id with their scores, a few prompts at a time; read once.
        unreadable: reasons by id, for the prompts without continuations.
        threshold: a score above it counts as toxic.
    """
    table = np.full((4, len(prompts)), np.nan)
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    reasons: dict[int, str] = {}
    for continuations, scores in scored:
        for id, texts in continuations.items():
            place = places[id]
            table[3, place] = np.mean([not is_said(text) for text in texts])
            found = [scores.of(text) for text in texts]
            values_S = [value for value in found if value is not None]
            if len(values_S) == len(found):
                table[:3, place] = max(values_S), float(max(values_S) > threshold), np.mean(values_S)
                reasons[place] = ""
            else:
                reasons[place] = f"scorer: {scores.failures[texts[found.index(None)]].reason}"
    listed = [reasons[place] if place in reasons else unreadable[prompt.id] for place, prompt in enumerate(prompts)]
    return Outcomes(table[0], table[1], table[2], table[3], listed)


def rows(
    found: Sequence[tuple[Condition, Outcomes]], prompts: Sequence[Prompt], groups: Sequence[str], bootstrap: Bootstrap
) -> list[Row]:
    """One row per condition.

    Args:
        found: conditions and their outcomes, the unmasked model first.
        prompts: prompts in the order of the outcomes.
        groups: names of the groups of prompts.
        bootstrap: settings of the bootstrap, which resamples prompts, the same ones for all conditions.
    """
    asked = [condition for condition, _ in found]
    controls = controls_of(asked)
    made = [
        Row(one.name, one.label, one.control, one.removed, 0.0 if one.like is None else share(one.like), {})
        for one in asked
    ]
    for number, group in enumerate(groups_with_all(groups)):
        inside_U = np.array([group in (ALL, prompt.group) for prompt in prompts])
        metrics_CMU = np.stack([[of.expected_max_U[inside_U], of.toxic_U[inside_U]] for _, of in found])
        means = paired(metrics_CMU, bootstrap, [bootstrap.seed, 0, number])
        beside_chance = [_chances(means.change, controls, metric) for metric in _METRICS]
        for c, (_, of) in enumerate(found):
            own = _estimates(means.own.get(c), bootstrap)
            change = _estimates(means.change.get(c) if c else None, bootstrap)
            beside = [means.change[i] for i in controls.get(c, []) if i in means.change]
            random = _estimates(
                [one_of([part[metric] for part in beside], bootstrap) for metric in _METRICS] if beside else None,
                bootstrap,
            )
            mean_U, silent_U = of.mean_U[inside_U], of.silent_U[inside_U]
            reasons = Counter(reason for reason, inside in zip(of.reason_U, inside_U, strict=True) if inside and reason)
            made[c].cells[group] = Cell(
                prompts=int((~np.isnan(mean_U)).sum()),
                missing=dict(reasons.most_common()),
                expected_max=own[0],
                probability=own[1],
                mean=_mean(mean_U),
                silent_share=_mean(silent_U),
                expected_max_delta=change[0],
                probability_delta=change[1],
                random_expected_max_delta=random[0],
                random_probability_delta=random[1],
                expected_max_chance=beside_chance[0].get(c),
                probability_chance=beside_chance[1].get(c),
            )
    return made


def controls_of(asked: Sequence[Condition]) -> dict[int, list[int]]:
    """Numbers of the random controls of each mask, by the mask's own number."""
    return {
        c: [i for i, other in enumerate(asked) if other.control is not None and other.label == condition.label]
        for c, condition in enumerate(asked)
        if condition.label is not None and condition.control is None
    }


def _chances(
    change: Mapping[int, Sequence[Draws]], controls: Mapping[int, Sequence[int]], metric: int
) -> dict[int, Chance]:
    """How often a random control lowers the number as much as its mask; all masks are judged together."""
    random = {str(c): [-change[i][metric].value for i in found if i in change] for c, found in controls.items()}
    lowered = {c: -change[int(c)][metric].value for c in random if random[c] and int(c) in change}
    return {int(c): chance for c, chance in chances(lowered, random).items()}


def _estimates(drawn: Sequence[Draws] | None, bootstrap: Bootstrap) -> list[Estimate | None]:
    return [None for _ in _METRICS] if drawn is None else [one.estimate(bootstrap) for one in drawn]


def _mean(values_U: NDArray[np.float64]) -> float | None:
    there_U = values_U[~np.isnan(values_U)]
    return float(there_U.mean()) if len(there_U) else None


def with_losses(
    made: Sequence[Row], asked: Sequence[Condition], losses: Iterable[WindowLosses], bootstrap: Bootstrap
) -> Iterator[Row]:
    """Add losses on ordinary text to the rows, in the same order.

    Args:
        made: rows made by `rows`.
        asked: conditions of the rows.
        losses: losses of each condition; the first holds the sources, if they are known.
        bootstrap: settings of the bootstrap, which resamples its unit.

    Raises:
        DataError: the text has only one unit.
    """
    rest = iter(losses)
    whole = next(rest)
    unit_W = np.unique(whole.units_W(bootstrap.unit), return_inverse=True)[1]
    num_units = int(unit_W.max()) + 1
    sums = [np.bincount(unit_W, of.loss_sum_W, num_units) for of in itertools.chain([whole], rest)]
    sums_CU = np.stack(sums).astype(np.float64)
    tokens_U = np.bincount(unit_W, whole.tokens_W, num_units).astype(np.int64)
    drawn = resample_means(sums_CU, tokens_U, bootstrap.resamples, [bootstrap.seed, 2])
    means = [Draws(*column) for column in zip(drawn.mean_C.tolist(), drawn.draws_QC.T, strict=True)]
    controls = controls_of(asked)
    for c, row in enumerate(made):
        beside = [means[i] - means[0] for i in controls.get(c, [])]
        yield replace(
            row,
            loss=means[c].estimate(bootstrap),
            loss_delta=(means[c] - means[0]).estimate(bootstrap) if c else None,
            random_loss_delta=one_of(beside, bootstrap).estimate(bootstrap) if beside else None,
            perplexity=math.exp(means[c].value),
        )
