"""Turn losses under masks into deltas with intervals and verdicts.

Losses come condition by condition. For each condition only the sums over documents (or windows) are kept, in a file if
they are many. Then the domains are drawn one after the other. So memory grows with the text and not with the number of
masks.

Dims: W windows, U units drawn together, C conditions, Q resamples, as in `monet.eval.core.bootstrap`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import DataError
from monet.eval.ablation.results import AblationResult, Baseline, Verdict
from monet.eval.core.bootstrap import Bootstrap, resample_means
from monet.eval.core.chance import chances, reasons_against
from monet.eval.core.estimate import ZERO, Draws, Estimate, one_of
from monet.eval.core.intervention import Intervention, share, unit_of
from monet.eval.core.window_losses import WindowLosses

# The mask of a label, or the random control with this number.
Measured = tuple[str, int | None]

IN_MEMORY_BYTES = 256 * 2**20  # bytes of sums that are kept in memory; more go into a temporary file
SUMS_AT_ONCE = 32_000_000  # sums of one domain that are drawn together


@dataclass(frozen=True)
class _Domain:
    """One domain's windows without a mask.

    Args:
        name: name of the domain.
        unit_W: number of the unit to which each window belongs.
        loss_sum_U: float64, summed losses of the whole model.
        tokens_U: int64, scored tokens.
        documents: number of documents.
        sources: number of sources; None if they are not known.
    """

    name: str
    unit_W: NDArray[np.intp]
    loss_sum_U: NDArray[np.float64]
    tokens_U: NDArray[np.int64]
    documents: int
    sources: int | None

    def sums(self, loss_sum_W: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the losses of the windows up to the losses of the units."""
        return np.bincount(self.unit_W, loss_sum_W, len(self.tokens_U)).astype(np.float64)


def _by_label(losses: WindowLosses, labels: int) -> list[NDArray[np.intp]]:
    """The windows of each label, in the order of the data."""
    order_W = np.argsort(losses.label_W, kind="stable")
    ends = np.searchsorted(losses.label_W[order_W], np.arange(1, labels))
    return np.split(order_W, ends)


def _domains(names: Sequence[str], whole: WindowLosses, bootstrap: Bootstrap) -> list[_Domain]:
    """The domains of the data.

    Raises:
        DataError: no interval can be drawn for a domain; the message names it and its number of units.
    """
    found = []
    all_units_W = whole.units_W(bootstrap.unit)
    for name, rows_X in zip(names, _by_label(whole, len(names)), strict=True):
        unit_W = np.unique(all_units_W[rows_X], return_inverse=True)[1]
        units = int(unit_W.max(initial=-1)) + 1
        if units < 2:
            smaller = "document" if bootstrap.unit == "source" else "window"
            raise DataError(
                f"domain {name!r} has {units} {bootstrap.unit or 'unit'} to draw from, but an interval needs two; "
                f"add text to the evaluation split, or draw {smaller}s instead (--unit {smaller})"
            )
        loss_sum_U, tokens_U = (np.bincount(unit_W, of[rows_X], units) for of in (whole.loss_sum_W, whole.tokens_W))
        documents = len(np.unique(whole.document_W[rows_X]))
        sources = None if whole.source_W is None else len(np.unique(whole.source_W[rows_X]))
        found.append(
            _Domain(name, unit_W, loss_sum_U.astype(np.float64), tokens_U.astype(np.int64), documents, sources)
        )
    return found


class _Sums:
    """Sums of units by domain and condition, in memory, or in a file if they are many."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 - closed by close
        self._places: dict[int, dict[Measured, tuple[int, int]]] = {}

    def put(self, domain: int, key: Measured, sums_U: NDArray[np.float64]) -> None:
        """Keep the sums of one condition on one domain. Call it before `blocks`."""
        self._places.setdefault(domain, {})[key] = (self._file.tell(), sums_U.nbytes)
        self._file.write(sums_U.tobytes())

    def blocks(self, domain: int, units: int) -> Iterator[tuple[list[Measured], NDArray[np.float64]]]:
        """Conditions of a domain with their sums (C, U). A label and its random masks are in one block."""
        waiting: list[Measured] = []
        places = self._places.get(domain, {})
        for key in places:
            if waiting and key[1] is None and len(waiting) * units >= SUMS_AT_ONCE:
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
    """Resampled quantities: a cell for every mask and domain, and further inputs of the verdicts.

    Args:
        baseline: loss of the whole model, for each domain.
        delta: increase under the label's mask, by label and domain.
        control: increase under its random controls, by label and domain; unmeasured domains are missing.
        per_control: by label, the increases of its random controls on the label itself.
        others: by label, the sum of its mask's increases on the other domains.
    """

    baseline: list[Baseline] = field(default_factory=list)
    delta: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    control: dict[tuple[str, str], Estimate] = field(default_factory=dict)
    per_control: dict[str, list[float]] = field(default_factory=dict)
    others: dict[str, Draws] = field(default_factory=dict)


def _resample(domains: Sequence[_Domain], sums: _Sums, bootstrap: Bootstrap) -> _Found:
    """Resample each domain, with the same draws for all masks; domains are drawn independently."""
    found = _Found()
    for number, domain in enumerate(domains):
        for keys, sums_CU in sums.blocks(number, len(domain.tokens_U)):
            sums_CU = np.concatenate([domain.loss_sum_U[None], sums_CU])
            drawn = resample_means(sums_CU, domain.tokens_U, bootstrap.resamples, [bootstrap.seed, 0, number])
            whole, *measured = (Draws(*column) for column in zip(drawn.mean_C.tolist(), drawn.draws_QC.T, strict=True))
            if len(found.baseline) == number:
                loss, tokens = whole.estimate(bootstrap), int(domain.tokens_U.sum())
                found.baseline.append(
                    Baseline(
                        domain.name,
                        loss,
                        math.exp(loss.value),
                        tokens,
                        len(domain.unit_W),
                        domain.documents,
                        domain.sources,
                    )
                )
            changes: dict[str, dict[int | None, Draws]] = {}
            for (label, seed), one in zip(keys, measured, strict=True):
                changes.setdefault(label, {})[seed] = one - whole
            for label, by_seed in changes.items():
                own = by_seed.pop(None, None)
                if own is not None:
                    found.delta[label, domain.name] = own.estimate(bootstrap)
                    if label != domain.name:
                        found.others[label] = found.others[label] + own if label in found.others else own
                if by_seed:
                    controls = list(by_seed.values())
                    found.control[label, domain.name] = one_of(controls, bootstrap).estimate(bootstrap)
                    if label == domain.name:
                        found.per_control[label] = [control.value for control in controls]
    return found


def summarise(
    masks: Mapping[str, Intervention],
    domains: Sequence[str],
    whole: WindowLosses,
    losses: Iterable[tuple[Measured, WindowLosses]],
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> AblationResult:
    """Deltas with intervals, and one verdict for each mask.

    Args:
        masks: the removal for each label.
        domains: names of the evaluated domains, in the order of their label numbers.
        whole: losses without a mask.
        losses: losses under each mask, followed by those under its random controls. A mask has all domains; a control
            has at least the target. They are read one after the other, after the check of `whole`, so an iterator can
            compute them on demand.
        bootstrap: settings of the intervals.
        provenance: provenance of the result.

    Raises:
        DataError: a domain has only one source, document or window to draw from.
    """
    parts = _domains(domains, whole, bootstrap)
    sums = _Sums()
    try:
        for key, kept in losses:
            for number, rows_X in enumerate(_by_label(kept, len(parts))):
                if len(rows_X):
                    sums.put(number, key, parts[number].sums(kept.loss_sum_W[rows_X]))
        found = _resample(parts, sums, bootstrap)
    finally:
        sums.close()
    removing = {label for label, mask in masks.items() if mask.num_removed}
    beside_chance = chances(
        {label: found.delta[label, label].value for label in masks if label in removing},
        {label: found.per_control.get(label, []) for label in removing},
    )

    def estimate(label: str, domain: str) -> Estimate:
        return found.delta.get((label, domain), ZERO)

    def control(label: str, domain: str) -> Estimate | None:
        return found.control.get((label, domain)) if label in removing else ZERO

    def verdict(label: str) -> Verdict:
        mask, chance = masks[label], beside_chance.get(label)
        target, random = estimate(label, label), control(label, label)
        assert random is not None, "controls are always measured on their target"
        others = {domain: estimate(label, domain).value for domain in domains if domain != label}
        worst = max(others, key=others.__getitem__)
        others_mean = (found.others[label] / len(others)).estimate(bootstrap) if label in removing else ZERO
        reasons = reasons_against(mask.num_removed, target.value, others, chance, mask.unit)
        return Verdict(
            name=label,
            target_delta=target.value,
            target_interval=target.ends,
            others_max_delta=others[worst],
            others_max_name=worst,
            others_mean_delta=others_mean.value,
            others_mean_interval=others_mean.ends,
            random_delta=random.value,
            random_interval=random.ends,
            random_per_control=found.per_control.get(label, []),
            controls=chance.controls if chance else 0,
            p=chance.p if chance else 1.0,
            q=chance.q if chance else 1.0,
            removed=mask.num_removed,
            removed_per_group=mask.removed_per_group,
            share=share(mask),
            passes=not reasons,
            reason="; ".join(reasons),
        )

    delta = [[estimate(label, domain) for domain in domains] for label in masks]
    unit, group = unit_of(masks)
    return AblationResult(
        unit=unit,
        group=group,
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


def increases(
    names: Sequence[str], whole: WindowLosses, masked: Mapping[str, WindowLosses], bootstrap: Bootstrap
) -> dict[str, dict[str, Draws]]:
    """Every domain's loss without a mask, and its increase under each mask, with their resamples.

    A verdict holds intervals of these. Use the resamples for quantities that a verdict lacks, such as ratios or means
    of some domains. The resamples of one domain are the same for all masks. Those of two domains are independent.

    Args:
        names: names of the domains that have windows here, in the order of their label numbers.
        whole: losses without a mask.
        masked: losses under each mask, on the same windows.
        bootstrap: settings of the resamples.

    Returns:
        Nats a token, by name of the mask and name of the domain; under "" the losses without a mask.

    Raises:
        DataError: a domain has only one document (or window).
    """
    numbers, label_W = np.unique(whole.label_W, return_inverse=True)
    assert len(numbers) == len(names), f"windows of {len(numbers)} labels for {list(names)}"
    whole = replace(whole, label_W=label_W)
    parts = _domains(names, whole, bootstrap)
    found: dict[str, dict[str, Draws]] = {name: {} for name in ("", *masked)}
    for place, (domain, rows_X) in enumerate(zip(parts, _by_label(whole, len(parts)), strict=True)):
        sums_CU = np.stack([domain.loss_sum_U, *(domain.sums(one.loss_sum_W[rows_X]) for one in masked.values())])
        drawn = resample_means(sums_CU, domain.tokens_U, bootstrap.resamples, [bootstrap.seed, 0, place])
        before, *after = (Draws(*column) for column in zip(drawn.mean_C.tolist(), drawn.draws_QC.T, strict=True))
        found[""][domain.name] = before
        for name, one in zip(masked, after, strict=True):
            found[name][domain.name] = one - before
    return found
