"""From losses under masks to deltas with intervals and verdicts.

Losses come condition by condition. Of each only the sums over documents (or windows) are kept, in a file once they are
many; domains are then drawn one after the other. So memory grows with the text and not with the number of masks.

Dims: W windows, U units drawn together, C conditions, Q resamples, as in `monet.eval.bootstrap`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import DataError
from monet.eval.bootstrap import Bootstrap, Resampled, interval, resample_means
from monet.eval.losses import WindowLosses
from monet.eval.results import AblationResult, Baseline, Estimate, Verdict

if TYPE_CHECKING:
    from monet.masks import ExpertMask

# The mask of a label, or the random mask of that size and seed.
Measured = tuple[str, int | None]

_IN_MEMORY = 256 * 2**20  # bytes of sums that are kept in memory; more go into a temporary file
_AT_ONCE = 32_000_000  # sums of one domain that are drawn together


@dataclass(frozen=True)
class _Domain:
    """One domain's windows without a mask.

    Args:
        name: of the domain.
        unit_W: number of the unit that each window belongs to.
        loss_sum_U: float64, summed losses of the whole model.
        tokens_U: int64, scored tokens.
        documents: how many there are.
    """

    name: str
    unit_W: NDArray[np.intp]
    loss_sum_U: NDArray[np.float64]
    tokens_U: NDArray[np.int64]
    documents: int

    def sums(self, loss_sum_W: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of the units out of those of the windows."""
        return np.bincount(self.unit_W, loss_sum_W, len(self.tokens_U)).astype(np.float64)


def _by_label(losses: WindowLosses, labels: int) -> list[NDArray[np.intp]]:
    """The windows of each label, in the order of the data."""
    order_W = np.argsort(losses.label_W, kind="stable")
    ends = np.searchsorted(losses.label_W[order_W], np.arange(1, labels))
    return np.split(order_W, ends)


def _domains(names: Sequence[str], whole: WindowLosses, bootstrap: Bootstrap) -> list[_Domain]:
    """The domains of the data.

    Raises:
        DataError: a domain that no interval can be drawn for; names it and how many documents (or windows) it has.
    """
    found = []
    for name, rows_X in zip(names, _by_label(whole, len(names)), strict=True):
        documents, document_W = np.unique(whole.document_W[rows_X], return_inverse=True)
        by_document = bootstrap.unit == "document"
        units = len(documents) if by_document else len(rows_X)
        if units < 2:
            raise DataError(
                f"domain {name!r} offers {units} {bootstrap.unit} to draw from and an interval needs two; add text to "
                "the evaluation split, or draw windows instead (--unit window)"
            )
        unit_W: NDArray[np.intp] = document_W if by_document else np.arange(len(rows_X))
        loss_sum_U, tokens_U = (np.bincount(unit_W, of[rows_X], units) for of in (whole.loss_sum_W, whole.tokens_W))
        found.append(_Domain(name, unit_W, loss_sum_U.astype(np.float64), tokens_U.astype(np.int64), len(documents)))
    return found


class _Sums:
    """Sums of units by domain and condition, in memory or, where they are many, in a file."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by close
        self._places: dict[int, dict[Measured, tuple[int, int]]] = {}

    def put(self, domain: int, key: Measured, sums_U: NDArray[np.float64]) -> None:
        """Keep one condition's sums on one domain; call before `blocks`."""
        self._places.setdefault(domain, {})[key] = (self._file.tell(), sums_U.nbytes)
        self._file.write(sums_U.tobytes())

    def blocks(self, domain: int, units: int) -> Iterator[tuple[list[Measured], NDArray[np.float64]]]:
        """Conditions measured on a domain with their sums (C, U); a label and its random masks are in one block."""
        waiting: list[Measured] = []
        places = self._places.get(domain, {})
        for key in places:
            if waiting and key[1] is None and len(waiting) * units >= _AT_ONCE:
                yield waiting, self._read(places, waiting)
                waiting = []
            waiting.append(key)
        yield waiting, self._read(places, waiting) if waiting else np.empty((0, units))

    def _read(self, places: Mapping[Measured, tuple[int, int]], keys: Sequence[Measured]) -> NDArray[np.float64]:
        rows = []
        for start, size in map(places.__getitem__, keys):
            self._file.seek(start)
            rows.append(np.frombuffer(self._file.read(size), np.float64))
        return np.stack(rows)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


@dataclass
class _Found:
    """What was drawn: a cell for every mask and domain, and what verdicts need beside.

    Args:
        baseline: of the whole model, a domain each.
        delta: by label and domain, of the label's mask.
        control: likewise, of its random masks; a domain where they were not measured is missing.
        per_seed: by label, increases of its random masks on itself.
        others_Q: by label, draws of its mask's increases summed over the other domains.
    """

    baseline: list[Baseline] = field(default_factory=list)
    delta: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    control: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    per_seed: dict[str, list[float]] = field(default_factory=dict)
    others_Q: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def _resample(domains: Sequence[_Domain], sums: _Sums, seeds: Sequence[int], bootstrap: Bootstrap) -> _Found:
    """Draw each domain's units again, the same draws for all masks; domains are drawn independently."""
    found = _Found()
    one_of_Q = np.random.default_rng([bootstrap.seed, 1]).integers(len(seeds), size=bootstrap.resamples)
    for number, domain in enumerate(domains):
        for keys, sums_CU in sums.blocks(number, len(domain.tokens_U)):
            sums_CU = np.concatenate([domain.loss_sum_U[None], sums_CU])
            drawn = resample_means(sums_CU, domain.tokens_U, bootstrap.resamples, [bootstrap.seed, 0, number])
            if len(found.baseline) == number:
                loss = Estimate(float(drawn.mean_C[0]), *interval(drawn.draws_QC[:, 0], bootstrap.confidence))
                tokens, windows = int(domain.tokens_U.sum()), len(domain.unit_W)
                found.baseline.append(
                    Baseline(domain.name, loss, math.exp(loss.value), tokens, windows, domain.documents)
                )
            place = {key: column for column, key in enumerate(keys, start=1)}
            for label in dict.fromkeys(label for label, _ in keys):
                if (label, None) in place:
                    _own(found, domain.name, label, *_increase(drawn, place[label, None]), bootstrap)
                if seeds and (label, seeds[0]) in place:
                    parts = [_increase(drawn, place[label, seed]) for seed in seeds]
                    draws_QS = np.stack([draws_Q for _, draws_Q in parts], axis=1)
                    draws_Q = draws_QS[np.arange(bootstrap.resamples), one_of_Q]
                    deltas = [delta for delta, _ in parts]
                    mean = float(np.mean(deltas))
                    found.control[label, domain.name] = Estimate(mean, *interval(draws_Q, bootstrap.confidence))
                    if label == domain.name:
                        found.per_seed[label] = deltas
    return found


def _increase(drawn: Resampled, column: int) -> tuple[float, NDArray[np.float64]]:
    """A condition's increase of mean loss, and the same on every resample."""
    delta = float(drawn.mean_C[column] - drawn.mean_C[0])
    return delta, drawn.draws_QC[:, column] - drawn.draws_QC[:, 0]


def _own(
    found: _Found, domain: str, label: str, delta: float, draws_Q: NDArray[np.float64], bootstrap: Bootstrap
) -> None:
    found.delta[label, domain] = Estimate(delta, *interval(draws_Q, bootstrap.confidence))
    if label != domain:
        found.others_Q[label] = found.others_Q[label] + draws_Q if label in found.others_Q else draws_Q


def summarise(
    masks: Mapping[str, ExpertMask],
    domains: Sequence[str],
    whole: WindowLosses,
    losses: Iterable[tuple[Measured, WindowLosses]],
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> AblationResult:
    """Deltas with intervals and one verdict a mask.

    Args:
        masks: per label the mask that removes its experts.
        domains: the evaluated domains, named in the order of their label numbers.
        whole: losses without a mask.
        losses: under each mask, followed by its random masks: on all domains or, for random masks, on the target at
            least. They are taken one after the other, after `whole` was checked, so they may be computed as they are
            asked for.
        bootstrap: how intervals are made.
        provenance: goes into the result; its `random_seeds` are the seeds in the keys of `losses`.

    Raises:
        DataError: a domain with a single document (or window).
    """
    parts = _domains(domains, whole, bootstrap)
    sums = _Sums()
    try:
        for key, kept in losses:
            for number, rows_X in enumerate(_by_label(kept, len(parts))):
                if len(rows_X):
                    sums.put(number, key, parts[number].sums(kept.loss_sum_W[rows_X]))
        found = _resample(parts, sums, provenance["random_seeds"], bootstrap)
    finally:
        sums.close()
    zero = Estimate(0.0, 0.0, 0.0)

    def estimate(label: str, domain: str) -> Estimate:
        return found.delta.get((label, domain), zero)

    def control(label: str, domain: str) -> Estimate | None:
        return found.control.get((label, domain)) if masks[label].num_removed else zero

    def verdict(label: str) -> Verdict:
        mask = masks[label]
        target, random = estimate(label, label), control(label, label)
        assert random is not None, "random masks are always measured on their target"
        others = {domain: estimate(label, domain).value for domain in domains if domain != label}
        others_max_name = max(others, key=others.__getitem__)
        others_draws_Q = found.others_Q.get(label, np.zeros(bootstrap.resamples)) / len(others)
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
            random_per_seed=found.per_seed.get(label, [0.0] * len(provenance["random_seeds"])),
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
