"""Removes every domain from one model: settles the share of its units, then judges every removal.

Dims: W windows, U documents drawn together, Q resamples, as in `monet.eval.core.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monet.eval.ablation.verdicts import increases
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import chances
from monet.eval.core.controls import Controls
from monet.eval.core.estimate import Draws, one_of
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.intervention import Intervention
from monet.eval.core.loading import windows_bar
from monet.eval.core.units import choose_unit, with_sources
from monet.eval.core.window_losses import WindowLosses
from monet.masks.controls import ControlKind
from studies.removal.candidates import Candidate
from studies.removal.plan import JUDGING_SEED
from studies.removal.results import Loss, Share, Trial


@dataclass(frozen=True)
class Compared:
    """A removal and its random controls on its own domain, all on the same windows.

    Args:
        own: increase of loss under the removal.
        control: increase under a single control; a resample takes one of them.
        per_control: increases under each control.
        p, q: see `monet.eval.core.chance`; q over the domains.
        reached: mass that a control removes over that of the removal, mean over controls; None if the mass is unknown.
    """

    own: Draws
    control: Draws
    per_control: list[float]
    p: float
    q: float
    reached: float | None


@dataclass(frozen=True)
class Measurement:
    """Measurements of one model.

    Args:
        candidate: the model.
        shares: shares that were tried, with their results on `validation`.
        settled: the chosen share.
        masks: masks at that share.
        cells: increase of loss by removed and evaluated domain.
        text: the whole model's losses.
        compared: by kind of control and domain.
    """

    candidate: Candidate
    shares: list[Share]
    settled: Share
    masks: Mapping[str, Intervention]
    cells: dict[str, dict[str, Draws]]
    text: list[Loss]
    compared: dict[ControlKind, dict[str, Compared]]


def settled(shares: Sequence[Share]) -> Share:
    """The share at which most domains hold on the split `validation`; of shares that tie, the largest.

    A domain holds at a share if the removal of its units costs it more than it costs every other domain, and more than
    every random removal as large costs it.
    """
    return max(shares, key=lambda one: (len(one.holds), one.share))


def measure(candidate: Candidate) -> Measurement:
    """Settle the share, then measure all removals at it; kept measurements are not repeated."""
    plan = candidate.plan
    shares = [_tried(candidate, share) for share in plan.shares]
    taken = settled(shares)
    masks = candidate.masks(taken.share)
    data = plan.evaluate
    losses = _losses(candidate, {"": None, **masks}, data, f"{candidate.name}: removals")
    whole = losses.pop("")
    cells = drawn(data, whole, losses, plan.bootstrap)
    kinds: dict[ControlKind, int] = {
        "number": plan.controls, "mass": plan.harder_controls, "activity": plan.harder_controls,
    }  # fmt: skip
    return Measurement(
        candidate, shares, taken, masks, cells, _text(data, whole, cells.pop(""), plan.bootstrap),
        {kind: _compare(candidate, masks, kind, count) for kind, count in kinds.items()},
    )  # fmt: skip


def drawn(
    data: PreparedWindows, whole: WindowLosses, masked: Mapping[str, WindowLosses], bootstrap: Bootstrap
) -> dict[str, dict[str, Draws]]:
    """Increases with their resamples, over sources if they are known; see `verdicts.increases`."""
    bootstrap, sources = choose_unit(bootstrap, data)
    names = [name for name, windows in data.window_sources().items() if windows]
    return increases(names, with_sources(whole, data.labels, sources), masked, bootstrap)


def matrix_of(found: Sequence[Measurement], names: Sequence[str]) -> list[list[float]]:
    """Increase of loss by removed and evaluated domain, mean over the models."""
    return [[sum(one.cells[name][other].value for one in found) / len(found) for other in names] for name in names]


def _losses(
    candidate: Candidate, masks: Mapping[str, Intervention | None], data: PreparedWindows, title: str
) -> dict[str, WindowLosses]:
    with windows_bar(len(masks) * data.num_windows, title, True) as bar:
        return {name: candidate.store.losses(mask, data, name, bar.update) for name, mask in masks.items()}


def _means(losses: WindowLosses, labels: int) -> list[float]:
    """Mean loss of each label in nats per token; 0 for a label without a window."""
    loss_C, tokens_C = (np.bincount(losses.label_W, of, labels) for of in (losses.loss_sum_W, losses.tokens_W))
    return (loss_C / np.maximum(tokens_C, 1)).tolist()


def _tried(candidate: Candidate, share: float) -> Share:
    """Results of one share on `validation`."""
    plan, masks, data = candidate.plan, candidate.masks(share), candidate.plan.validation
    controls, labels, store = plan.settling, data.labels, candidate.store
    trials = {}
    with windows_bar(
        data.num_windows * (1 + len(labels)) + controls.count * data.num_windows, f"{candidate.name}: {share:.1%}", True
    ) as bar:
        before = _means(store.losses(None, data, "no mask", bar.update), len(labels))
        for place, label in enumerate(labels):
            after = _means(store.losses(masks[label], data, label, bar.update), len(labels))
            increase = {name: one - whole for name, one, whole in zip(labels, after, before, strict=True)}
            own, part, random = increase.pop(label), data.only([label]), []
            for number in range(controls.count):
                like = controls.draw(masks[label], number, label, data.fingerprint)
                losses = store.losses(like, part, f"random {number} like {label}", bar.update)
                random.append(_means(losses, len(labels))[place] - before[place])
            worst = max(increase, key=increase.__getitem__)
            trials[label] = Trial(masks[label].num_removed, own, increase[worst], worst, max(random))
    return Share(share, trials)


def _text(data: PreparedWindows, whole: WindowLosses, mean: Mapping[str, Draws], bootstrap: Bootstrap) -> list[Loss]:
    found, sources = [], choose_unit(bootstrap, data)[1]
    for place, label in enumerate(data.labels):
        rows_X = whole.label_W == place
        documents = len(np.unique(whole.document_W[rows_X]))
        originals = None if sources is None else len(set(sources[label]))
        found.append(Loss(label, mean[label].estimate(bootstrap), int(rows_X.sum()), documents, originals))
    return found


def _compare(
    candidate: Candidate, masks: Mapping[str, Intervention], kind: ControlKind, count: int
) -> dict[str, Compared]:
    """Each domain's removal next to controls of one kind, on the domain itself."""
    plan, data = candidate.plan, candidate.plan.compared
    weights = {} if kind == "number" else candidate.weights(kind)
    mass = candidate.weights("mass")
    controls = Controls(count, kind, JUDGING_SEED, weights)
    own: dict[str, Draws] = {}
    random: dict[str, list[Draws]] = {}
    reached: dict[str, float | None] = {}
    with windows_bar(len(masks) * (count + 2) * plan.control_windows, f"{candidate.name}: equal {kind}", True) as bar:
        for label, mask in masks.items():
            part = data.only([label])
            like = [controls.draw(mask, number, label, data.fingerprint) for number in range(count)]
            names = [f"random {number} like {label}" for number in range(count)]
            whole, removed, *after = (
                candidate.store.losses(one, part, name, bar.update)
                for name, one in zip(["no mask", label, *names], [None, mask, *like], strict=True)
            )
            found = drawn(part, whole, {label: removed, **dict(zip(names, after, strict=True))}, plan.bootstrap)
            own[label], random[label] = found[label][label], [found[name][label] for name in names]
            wanted = mask.taken(mass[label])
            masses = [one.taken(mass[label]) for one in like]
            reached[label] = float(np.mean(masses)) / wanted if wanted > 0 else None
    removing = {label: own[label].value for label, mask in masks.items() if mask.num_removed}
    values = {label: [one.value for one in random[label]] for label in masks}
    found = chances(removing, values)
    return {
        label: Compared(
            own[label], one_of(random[label], plan.bootstrap), values[label],
            found[label].p if label in found else 1.0, found[label].q if label in found else 1.0, reached[label],
        )
        for label in masks
    }  # fmt: skip
