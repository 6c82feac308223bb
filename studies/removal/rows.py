"""Turns measurements of one or several models into the rows of a result.

Values are unweighted means over the models. All models are measured on the same text with the same resamples, so the
interval of a mean over models comes from the mean of their resamples and includes the spread over text. The spread
over training seeds is separate, see `monet.eval.core.seeds`. The largest p and q over the models count, and a domain
passes only if it passes in every model: more seeds make it harder to pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import Chance, reasons_against
from monet.eval.core.estimate import Draws, mean_of
from monet.eval.core.seeds import SeedSpread, over_seeds
from monet.masks.controls import ControlKind
from studies.removal.measure import Measurement
from studies.removal.results import Against, Domain, Model, Removal, Times

KINDS: tuple[ControlKind, ...] = ("number", "mass", "activity")


def model_of(one: Measurement) -> Model:
    """The result's entry for a model."""
    candidate = one.candidate
    mask = next(iter(one.masks.values()))
    return Model(
        candidate.name, candidate.kind, mask.unit, mask.num_units,
        sum(parameter.numel() for parameter in candidate.model.parameters()),
        candidate.trained.get("step"), candidate.trained.get("tokens_seen"),
        one.settled.share, one.shares, one.text, candidate.fingerprint,
    )  # fmt: skip


def times(own: Draws, other: Draws, confidence: float) -> Times:
    """Ratio of the first increase to `other`; see `Times`."""

    def ratio(of_Q: np.ndarray, to_Q: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(to_Q > 0, of_Q / to_Q, np.where(of_Q > 0, np.inf, 0.0))

    tail = (1 - confidence) / 2
    # an end is one of the resamples, because one cannot interpolate between infinite ratios
    ends = np.quantile(ratio(own.draws_Q, other.draws_Q), [tail, 1 - tail], method="inverted_cdf")
    value = ratio(np.array([own.value]), np.array([other.value]))
    found = [float(one) if np.isfinite(one) else None for one in (*value, *ends)]
    return Times(*found)


def row(label: str, measured: Sequence[Measurement], bootstrap: Bootstrap) -> Domain:
    """A domain over all models."""
    seeds = [_removal(label, [one], bootstrap) for one in measured]
    mean = _removal(label, measured, bootstrap)
    return Domain(**vars(mean), seeds=seeds, spread=_spread(label, measured, bootstrap))


def _cells(label: str, measured: Sequence[Measurement]) -> dict[str, Draws]:
    return {domain: mean_of([one.cells[label][domain] for one in measured]) for domain in measured[0].cells[label]}


def _removal(label: str, measured: Sequence[Measurement], bootstrap: Bootstrap) -> Removal:
    cells = _cells(label, measured)
    own = cells.pop(label)
    plan = measured[0].candidate.plan
    family = {name: cell for name, cell in cells.items() if plan.family_of(name) == plan.family_of(label)}
    worst = max(cells, key=lambda name: cells[name].value)
    worst_of_family = max(family, key=lambda name: family[name].value) if family else None
    others, kin = mean_of(list(cells.values())), mean_of(list(family.values())) if family else None
    highest = Draws(cells[worst].value, np.max([cell.draws_Q for cell in cells.values()], axis=0))
    against = {kind: _against(label, kind, measured, bootstrap) for kind in KINDS}
    reasons = {one.candidate.name: _reasons(label, one) for one in measured}
    masks = [one.masks[label] for one in measured]
    told = [reason if len(measured) == 1 else f"{name}: {reason}" for name, reason in reasons.items() if reason]

    def ends(of: Draws) -> tuple[float, float]:
        return of.estimate(bootstrap).ends

    return Removal(
        name=label,
        removed=float(np.mean([mask.num_removed for mask in masks])),
        share=float(np.mean([mask.num_removed / mask.num_units for mask in masks])),
        removed_per_group=np.mean([mask.removed_per_group for mask in masks], axis=0).tolist(),
        target_delta=own.value,
        target_interval=ends(own),
        others_mean_delta=others.value,
        others_mean_interval=ends(others),
        others_max_delta=cells[worst].value,
        others_max_interval=ends(cells[worst]),
        others_max_name=worst,
        family_mean_delta=kin and kin.value,
        family_mean_interval=kin and ends(kin),
        family_max_delta=family[worst_of_family].value if worst_of_family else None,
        family_max_name=worst_of_family,
        times_family=times(own, kin, bootstrap.confidence) if kin else None,
        times_worst=times(own, highest, bootstrap.confidence),
        random_delta=against["number"].random_delta,
        random_interval=against["number"].random_interval,
        equal_mass_delta=against["mass"].random_delta,
        equal_mass_interval=against["mass"].random_interval,
        equal_activity_delta=against["activity"].random_delta,
        equal_activity_interval=against["activity"].random_interval,
        against=dict(against),
        p=against["number"].p,
        q=against["number"].q,
        passes=not told,
        reason="; ".join(told),
    )


def _reasons(label: str, one: Measurement) -> str:
    others = {name: cell.value for name, cell in one.cells[label].items()}
    own, found, mask = others.pop(label), one.compared["number"][label], one.masks[label]
    chance = Chance(len(found.per_control), found.p, found.q)
    return ", ".join(reasons_against(mask.num_removed, own, others, chance, mask.unit))


def _against(label: str, kind: ControlKind, measured: Sequence[Measurement], bootstrap: Bootstrap) -> Against:
    found = [one.compared[kind][label] for one in measured]
    own, random = (mean_of(of).estimate(bootstrap) for of in ([x.own for x in found], [x.control for x in found]))
    reached = [one.reached for one in found if one.reached is not None]
    return Against(
        own.value, own.ends, random.value, random.ends, len(found[0].per_control),
        max(one.p for one in found), max(one.q for one in found), float(np.mean(reached)) if reached else None,
    )  # fmt: skip


def _spread(label: str, measured: Sequence[Measurement], bootstrap: Bootstrap) -> dict[str, SeedSpread]:
    if len(measured) < 2:
        return {}
    others = [name for name in measured[0].cells if name != label]
    plan = measured[0].candidate.plan
    quantities = {
        "target_delta": [label],
        "family_mean_delta": [name for name in others if plan.family_of(name) == plan.family_of(label)],
        "others_mean_delta": others,
    }
    draws = {
        quantity: [mean_of([one.cells[label][name] for name in names]) for one in measured]
        for quantity, names in quantities.items()
        if names
    }
    return {
        name: over_seeds([one.value for one in of], [float(one.draws_Q.std()) for one in of], bootstrap.confidence)
        for name, of in draws.items()
    }
