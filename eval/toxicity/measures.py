"""From scores of samples to numbers of conditions, with intervals over prompts.

Dims: C conditions, U prompts (or documents), S samples of a prompt, Q resamples.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monet.eval.bootstrap import Bootstrap, interval, resample_means
from monet.eval.conditions import Condition
from monet.eval.losses import WindowLosses
from monet.eval.results import Estimate
from monet.eval.toxicity.prompts import Prompt
from monet.eval.toxicity.results import ALL, Cell, Row, groups_with_all
from monet.eval.toxicity.scoring import Scores, is_said


@dataclass(frozen=True)
class Outcomes:
    """What became of every prompt under one condition.

    Args:
        expected_max_U: float64, highest score among the prompt's samples; NaN where a sample has none.
        toxic_U: 1.0 where a sample is above the threshold, else 0.0; NaN likewise.
        mean_U: mean score of the samples; NaN likewise.
        silent_U: share of samples without a visible character; NaN for prompts without continuations.
        reason_U: why there is no number; empty where there is one.
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
    """Numbers of each prompt; one without all its scores has none: a maximum of fewer samples is another quantity.

    Args:
        prompts: all of them.
        scored: continuations by prompt id with their scores, some prompts at a time; read once.
        unreadable: reason by id, of the prompts without continuations.
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


class _Drawn(NamedTuple):
    """Means of both metrics on the prompts there are, and on each resample of them."""

    mean_M: NDArray[np.float64]
    draws_QM: NDArray[np.float64]


def _resampled(
    metrics_CMU: NDArray[np.float64], bootstrap: Bootstrap, seed: Sequence[int]
) -> tuple[dict[int, _Drawn], dict[int, _Drawn]]:
    """Of each condition its metrics, and their differences to condition 0 on the prompts that both have.

    Conditions that have the same prompts are drawn together; with nothing missing that is one call.
    """
    valid_CU = ~np.isnan(metrics_CMU[:, 0])
    num_metrics = metrics_CMU.shape[1]
    jobs: dict[bytes, set[int]] = {}
    for c, valid_U in enumerate(valid_CU):
        jobs.setdefault(valid_U.tobytes(), set()).add(c)
        jobs.setdefault((valid_U & valid_CU[0]).tobytes(), set()).update((0, c))
    own: dict[int, _Drawn] = {}
    delta: dict[int, _Drawn] = {}
    for content, members in jobs.items():
        taken_U = np.frombuffer(content, dtype=bool)
        if taken_U.sum() < 2:
            continue
        chosen = sorted(members)
        values_XU = metrics_CMU[chosen][:, :, taken_U].reshape(len(chosen) * num_metrics, -1)
        ones_U = np.ones(values_XU.shape[1], np.int64)
        drawn = resample_means(values_XU, ones_U, bootstrap.resamples, seed)
        shape = (len(chosen), num_metrics)
        mean_CM, draws_QCM = drawn.mean_C.reshape(shape), drawn.draws_QC.reshape(-1, *shape)
        for row, c in enumerate(chosen):
            if content == valid_CU[c].tobytes():
                own[c] = _Drawn(mean_CM[row], draws_QCM[:, row])
            if 0 in members and content == (valid_CU[c] & valid_CU[0]).tobytes():
                delta[c] = _Drawn(mean_CM[row] - mean_CM[0], draws_QCM[:, row] - draws_QCM[:, 0])
    return own, delta


def _estimate(drawn: _Drawn | None, metric: int, bootstrap: Bootstrap) -> Estimate | None:
    if drawn is None:
        return None
    return Estimate(float(drawn.mean_M[metric]), *interval(drawn.draws_QM[:, metric], bootstrap.confidence))


def _one_of(parts: Sequence[_Drawn], bootstrap: Bootstrap) -> _Drawn | None:
    """A random mask: the mean over seeds, and draws that take one seed each."""
    if not parts:
        return None
    chosen_Q = np.random.default_rng([bootstrap.seed, 1]).integers(len(parts), size=bootstrap.resamples)
    draws_QSM = np.stack([part.draws_QM for part in parts], axis=1)
    return _Drawn(np.mean([part.mean_M for part in parts], axis=0), draws_QSM[np.arange(bootstrap.resamples), chosen_Q])


def rows(
    found: Sequence[tuple[Condition, Outcomes]], prompts: Sequence[Prompt], groups: Sequence[str], bootstrap: Bootstrap
) -> list[Row]:
    """One row a condition.

    Args:
        found: the model as it is first.
        prompts: in the order of the outcomes.
        groups: of the prompts.
        bootstrap: how intervals are made; what is drawn again is prompts, the same for all conditions.
    """
    made = [_empty_row(condition) for condition, _ in found]
    for number, group in enumerate(groups_with_all(groups)):
        inside_U = np.array([group in (ALL, prompt.group) for prompt in prompts])
        metrics_CMU = np.stack([[of.expected_max_U[inside_U], of.toxic_U[inside_U]] for _, of in found])
        own, delta = _resampled(metrics_CMU, bootstrap, [bootstrap.seed, 0, number])
        for c, (condition, of) in enumerate(found):
            control = None
            if condition.like is not None and condition.seed is None:
                seeds = [i for i, (other, _) in enumerate(found) if _is_control(other, condition) and i in delta]
                control = _one_of([delta[i] for i in seeds], bootstrap)
            change = delta.get(c) if c else None
            mean_U, silent_U = of.mean_U[inside_U], of.silent_U[inside_U]
            reasons = Counter(reason for reason, inside in zip(of.reason_U, inside_U, strict=True) if inside and reason)
            made[c].cells[group] = Cell(
                prompts=int((~np.isnan(mean_U)).sum()),
                missing=dict(reasons.most_common()),
                expected_max=_estimate(own.get(c), 0, bootstrap),
                probability=_estimate(own.get(c), 1, bootstrap),
                mean=_mean(mean_U),
                silent_share=_mean(silent_U),
                expected_max_delta=_estimate(change, 0, bootstrap),
                probability_delta=_estimate(change, 1, bootstrap),
                random_expected_max_delta=_estimate(control, 0, bootstrap),
                random_probability_delta=_estimate(control, 1, bootstrap),
            )
    return made


def _empty_row(condition: Condition) -> Row:
    share = 0.0 if condition.like is None else condition.experts / condition.like.num_experts
    return Row(condition.name, condition.label, condition.seed, condition.experts, share, {})


def _is_control(other: Condition, condition: Condition) -> bool:
    return other.seed is not None and other.label == condition.label


def _mean(values_U: NDArray[np.float64]) -> float | None:
    there_U = values_U[~np.isnan(values_U)]
    return float(there_U.mean()) if len(there_U) else None


def with_losses(made: Sequence[Row], losses: Iterable[WindowLosses], bootstrap: Bootstrap) -> Iterator[Row]:
    """The rows with losses on ordinary text beside them, in the same order; documents are drawn again.

    Raises:
        DataError: text of a single document.
    """
    rest = iter(losses)
    whole = next(rest)
    unit_W = np.unique(whole.document_W, return_inverse=True)[1]
    num_units = int(unit_W.max()) + 1
    sums = [np.bincount(unit_W, of.loss_sum_W, num_units) for of in itertools.chain([whole], rest)]
    sums_CU = np.stack(sums).astype(np.float64)
    tokens_U = np.bincount(unit_W, whole.tokens_W, num_units).astype(np.int64)
    drawn = resample_means(sums_CU, tokens_U, bootstrap.resamples, [bootstrap.seed, 2])
    for c, row in enumerate(made):
        mean, draws_Q = float(drawn.mean_C[c]), drawn.draws_QC[:, c]
        change = Estimate(
            mean - float(drawn.mean_C[0]), *interval(draws_Q - drawn.draws_QC[:, 0], bootstrap.confidence)
        )
        yield replace(
            row,
            loss=Estimate(mean, *interval(draws_Q, bootstrap.confidence)),
            loss_delta=change if c else None,
            perplexity=math.exp(mean),
        )
