"""Measures how much of a removal's cost a few steps of training recover, compared with equally costly random removals.

The removed units stay removed, and all other weights are trained on the domain's own text. The whole model is trained
in the same way, because it learns from that text too: a removal's cost is the loss above that of the whole model.
Random removals of equal cost show how much of any loss such training recovers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from monet.errors import DataError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.estimate import Draws, Estimate, mean_of, one_of
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.intervention import Intervention
from monet.eval.core.window_losses import WindowLosses, window_losses
from monet.files import atomic_write_json
from monet.json_text import read_json
from studies.removal.candidates import Candidate
from studies.removal.measure import Measurement, drawn
from studies.removal.plan import JUDGING_SEED
from studies.removal.results import Arm, Relearning, Stage

LEARNING_RATE = 3e-4
# Bisection steps in the search for the size of an equally costly random removal.
_HALVINGS = 9

# For each step, the loss above that of the whole model.
Costs = dict[int, Draws]


def equally_costly(candidate: Candidate, label: str, mask: Intervention, number: int) -> Intervention:
    """A random removal that costs the domain about as much on `validation` as its own removal does.

    Units are removed in a random order. Their number is chosen to come nearest to the cost of the domain's own removal.

    Args:
        candidate: the model.
        label: the domain.
        mask: its own removal.
        number: number of the random removal; each has another order.
    """
    data = candidate.plan.validation.only([label])
    keep = candidate.keep(mask)
    content = f"{JUDGING_SEED}\n{number}\n{mask.digest}"
    seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big")
    pool = candidate.removable(keep)
    order_N = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]

    def first(count: int) -> Intervention:
        keep_N = torch.ones(keep.numel(), dtype=torch.bool)
        keep_N[order_N[:count]] = False
        return candidate.mask(keep_N.view_as(keep))

    def loss(one: Intervention | None) -> float:
        found = candidate.store.losses(one, data, "an equally costly removal", lambda _: None)
        return float(found.loss_sum_W.sum() / found.tokens_W.sum())

    wanted = loss(mask)
    least, most = 0, len(pool) - 1
    for _ in range(_HALVINGS):
        middle = (least + most) // 2
        least, most = (middle, most) if loss(first(middle)) < wanted else (least, middle)
    return min((first(max(1, count)) for count in (least, most)), key=lambda one: abs(loss(one) - wanted))


def trained_losses(
    candidate: Candidate, label: str, removed: Intervention | None, held_out: PreparedWindows, name: str
) -> dict[int, WindowLosses]:
    """Losses of a copy of the model before and after training on the domain's text, with AdamW at a constant rate."""
    plan = candidate.plan
    batch_size = max(1, plan.batch_size // 2)
    data = PreparedWindows(plan.data, "identify", plan.seq_len, plan.steps[-1] * batch_size, [label])
    student = copy.deepcopy(candidate.model)
    losses = {0: window_losses(student, removed, held_out, batch_size=plan.batch_size, name=name)}
    optimizer = torch.optim.AdamW(student.train().parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    taken = islice(cycle(data.batches(batch_size)), plan.steps[-1])
    title = f"{candidate.name}: {label} trained again, {name}"
    for step, batch in enumerate(tqdm(taken, title, plan.steps[-1], unit="step"), start=1):
        with removed.applied_to(student) if removed else contextlib.nullcontext():
            logits_BTV = student(**batch.inputs(student.device)).logits
            targets_BT = batch.targets_BT.to(student.device)
            F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in plan.steps:
            losses[step] = window_losses(student, removed, held_out, batch_size=plan.batch_size, name=name)
    return losses


def _kept(
    candidate: Candidate, label: str, removed: Intervention | None, held_out: PreparedWindows, name: str
) -> dict[int, WindowLosses]:
    """The losses of `trained_again`, stored in a file as soon as they are known."""
    plan = candidate.plan
    key = [label, removed.digest if removed else "none", held_out.fingerprint, list(plan.steps), plan.batch_size]
    path = candidate.place("relearning", LEARNING_RATE, *key).with_suffix(".json")
    if not path.exists():
        losses = trained_losses(candidate, label, removed, held_out, name)
        atomic_write_json(path, {str(step): _as_lists(one) for step, one in losses.items()})
    content = read_json(path, DataError)
    return {
        int(step): WindowLosses(**{name: np.array(of) for name, of in one.items()}) for step, one in content.items()
    }


def _as_lists(losses: WindowLosses) -> dict[str, list[float]]:
    """All existing arrays; float64 and int64 keep their types when they are read."""
    arrays = {field.name: getattr(losses, field.name) for field in dataclasses.fields(losses)}
    return {name: array.tolist() for name, array in arrays.items() if array is not None}


def relearned(measured: Measurement, label: str) -> tuple[dict[str, list[Costs]], dict[str, float]]:
    """Costs of each arm's removals by step, and the number of units that each arm removes."""
    candidate = measured.candidate
    plan = candidate.plan
    held_out = PreparedWindows(plan.data, "evaluate", plan.seq_len, max(2, plan.windows // 2)).only([label])
    # without a fingerprint, because training changes the weights
    mask = candidate.mask(candidate.keep(measured.masks[label]))
    random = [equally_costly(candidate, label, mask, number) for number in range(plan.random_removals)]
    arms: Mapping[str, Sequence[Intervention]] = {"own": [mask], "random": random}
    whole = _kept(candidate, label, None, held_out, "whole")
    costs: dict[str, list[Costs]] = {}
    for arm, masks in arms.items():
        costs[arm] = []
        for number, one in enumerate(masks):
            losses = _kept(candidate, label, one, held_out, f"{arm} {number}")
            costs[arm].append(
                {step: drawn(held_out, whole[step], {arm: losses[step]}, plan.bootstrap)[arm][label] for step in whole}
            )
    return costs, {arm: float(np.mean([one.num_removed for one in masks])) for arm, masks in arms.items()}


def relearning(measured: Sequence[Measurement], label: str) -> Relearning:
    """Relearning of one domain over all models."""
    plan = measured[0].candidate.plan
    found = [relearned(one, label) for one in measured]
    seeds = [_arms([one], plan.bootstrap) for one in found]
    return Relearning(label, measured[0].candidate.kind, _arms(found, plan.bootstrap), seeds)


def _arms(found: Sequence[tuple[dict[str, list[Costs]], dict[str, float]]], bootstrap: Bootstrap) -> list[Arm]:
    arms = []
    for name in found[0][0]:
        stages = []
        for step in found[0][0][name][0]:
            cost = mean_of([one_of([of[step] for of in costs[name]], bootstrap) for costs, _ in found])
            returned = mean_of([one_of([_returned(of, step) for of in costs[name]], bootstrap) for costs, _ in found])
            stages.append(Stage(step, cost.estimate(bootstrap), _told(returned, bootstrap) if step else None))
        arms.append(Arm(name, float(np.mean([removed[name] for _, removed in found])), stages))
    return arms


def _returned(costs: Costs, step: int) -> Draws:
    """Share of the first cost that is gone; NaN if nothing was lost at first."""
    first, later = costs[0], costs[step]
    value = 1 - later.value / first.value if first.value > 0 else np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        draws_Q = np.where(first.draws_Q > 0, 1 - later.draws_Q / first.draws_Q, np.nan)
    return Draws(value, draws_Q)


def _told(returned: Draws, bootstrap: Bootstrap) -> Estimate | None:
    """As an estimate; None if nothing was lost at first, without ends if a resample lost nothing."""
    return None if np.isnan(returned.value) else returned.estimate(bootstrap)
