"""From losses under masks to deltas with intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import DataError
from monet.eval.bootstrap import Bootstrap, interval, resample_means
from monet.eval.losses import WindowLosses
from monet.eval.results import AblationResult, Baseline, Estimate, Verdict

if TYPE_CHECKING:
    from monet.masks import ExpertMask

# The mask of a label, or the random mask of that size and seed.
Measured = tuple[str, int | None]


@dataclass(frozen=True)
class _Resampled:
    """Losses under the bootstrap: of each domain's whole model, and differences to it for each condition."""

    baseline: list[Baseline]
    delta: dict[tuple[Measured, str], float]
    draws: dict[tuple[Measured, str], NDArray[np.float64]]


def _units(
    domain: str, whole: WindowLosses, rows_W: NDArray[np.bool_], bootstrap: Bootstrap
) -> tuple[NDArray[np.intp], int]:
    """What is drawn again: for each of the domain's windows the number of its unit, and how many units there are."""
    window_W = np.arange(rows_W.sum())
    found = np.unique(whole.document_W[rows_W] if bootstrap.unit == "document" else window_W, return_inverse=True)
    if len(found[0]) < 2:
        raise DataError(
            f"domain {domain!r} offers {len(found[0])} {bootstrap.unit} to draw from and an interval needs two; "
            "add text to the evaluation split, or draw windows instead (--unit window)"
        )
    return found[1], len(found[0])


def check_spread(domains: Sequence[str], whole: WindowLosses, bootstrap: Bootstrap) -> None:
    """Refuse domains that no interval can be drawn for.

    Raises:
        DataError: names the domain and how many documents (or windows) it has.
    """
    for number, domain in enumerate(domains):
        _units(domain, whole, whole.label_W == number, bootstrap)


def _resample(
    domains: Sequence[str], whole: WindowLosses, losses: Mapping[Measured, WindowLosses], bootstrap: Bootstrap
) -> _Resampled:
    """Draw each domain's documents again, the same draws for all masks; domains are drawn independently."""
    found = _Resampled([], {}, {})
    for number, domain in enumerate(domains):
        rows_W = whole.label_W == number
        unit_W, num_units = _units(domain, whole, rows_W, bootstrap)
        measured = {key: kept for key, kept in losses.items() if (kept.label_W == number).any()}
        sums_CW = [kept.loss_sum_W[kept.label_W == number] for kept in (whole, *measured.values())]
        sums_CU = np.stack([np.bincount(unit_W, sums_W, num_units) for sums_W in sums_CW]).astype(np.float64)
        tokens_U = np.bincount(unit_W, whole.tokens_W[rows_W], num_units)
        drawn = resample_means(sums_CU, tokens_U, bootstrap.resamples, [bootstrap.seed, 0, number])
        loss = Estimate(float(drawn.mean_C[0]), *interval(drawn.draws_QC[:, 0], bootstrap.confidence))
        documents = len(np.unique(whole.document_W[rows_W]))
        found.baseline.append(
            Baseline(domain, loss, math.exp(loss.value), int(tokens_U.sum()), int(rows_W.sum()), documents)
        )
        for column, key in enumerate(measured, start=1):
            found.delta[key, domain] = float(drawn.mean_C[column] - drawn.mean_C[0])
            found.draws[key, domain] = drawn.draws_QC[:, column] - drawn.draws_QC[:, 0]
    return found


def summarise(
    masks: Mapping[str, ExpertMask],
    domains: Sequence[str],
    whole: WindowLosses,
    losses: Mapping[Measured, WindowLosses],
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> AblationResult:
    """Deltas with intervals and one verdict a mask.

    Args:
        masks: per label the mask that removes its experts.
        domains: the evaluated domains, named in the order of their label numbers.
        whole: losses without a mask.
        losses: under each mask and random mask, on all domains or, for random masks, on the target at least.
        bootstrap: how intervals are made.
        provenance: goes into the result; its `random_seeds` are the seeds in the keys of `losses`.

    Raises:
        DataError: a domain with a single document (or window).
    """
    found = _resample(domains, whole, losses, bootstrap)
    seeds: list[int] = provenance["random_seeds"]
    nothing = np.zeros(bootstrap.resamples)

    def estimate(label: str, domain: str) -> Estimate:
        key = ((label, None), domain)
        return Estimate(found.delta.get(key, 0.0), *interval(found.draws.get(key, nothing), bootstrap.confidence))

    def control(label: str, domain: str) -> Estimate | None:
        if not masks[label].num_removed:
            return Estimate(0.0, 0.0, 0.0)
        keys: list[tuple[Measured, str]] = [((label, seed), domain) for seed in seeds]
        if keys[0] not in found.delta:
            return None
        one_of = np.random.default_rng([bootstrap.seed, 1]).integers(len(seeds), size=bootstrap.resamples)
        draws_QS = np.stack([found.draws[key] for key in keys], axis=1)
        draws_Q = draws_QS[np.arange(bootstrap.resamples), one_of]
        return Estimate(float(np.mean([found.delta[key] for key in keys])), *interval(draws_Q, bootstrap.confidence))

    def verdict(label: str) -> Verdict:
        mask = masks[label]
        target, random = estimate(label, label), control(label, label)
        assert random is not None, "random masks are always measured on their target"
        others = {domain: estimate(label, domain).value for domain in domains if domain != label}
        others_max_name = max(others, key=others.__getitem__)
        others_draws_Q = np.mean([found.draws.get(((label, None), domain), nothing) for domain in others], axis=0)
        reasons = []
        if not mask.num_removed:
            reasons.append("no expert belongs to it")
        elif target.value <= others[others_max_name]:
            reasons.append(f"{others_max_name} lost as much or more")
        if mask.num_removed and target.low <= random.high:
            reasons.append("within the interval of random masks")
        return Verdict(
            name=label,
            target_delta=target.value,
            target_interval=(target.low, target.high),
            others_max_delta=others[others_max_name],
            others_max_name=others_max_name,
            others_mean_delta=float(np.mean(list(others.values()))),
            others_mean_interval=interval(others_draws_Q, bootstrap.confidence),
            random_delta=random.value,
            random_interval=(random.low, random.high),
            random_per_seed=[found.delta.get(((label, seed), label), 0.0) for seed in seeds],
            experts=mask.num_removed,
            experts_per_group=mask.removed_per_group,
            share=mask.num_removed / mask.num_experts,
            passes=not reasons,
            reason="; ".join(reasons),
        )

    delta = [[estimate(label, domain) for domain in domains] for label in masks]
    return AblationResult(
        domains=[verdict(label) for label in masks],
        evaluated=found.baseline,
        delta=delta,
        perplexity=[
            [math.exp(before.loss.value + cell.value) for before, cell in zip(found.baseline, row, strict=True)]
            for row in delta
        ],
        random=[[control(label, domain) for domain in domains] for label in masks],
        provenance=provenance,
    )
