"""What a unit is judged on: excerpts in which it is active, of all strengths, and as many in which it is not.

Excerpts come from documents that no explainer saw. The inactive ones are excerpts of the other units of the same list,
so both kinds have the same distribution over the list, and an explanation of another unit does not separate them. The
model's forward passes say in which of them the unit is inactive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monet.eval.explain.excerpts import Excerpt, Excerpts, by_turns, side_of
from monet.eval.index.units import Unit
from monet.eval.inspection.weights import unit_weights

# Units whose weights are in memory at once, and random excerpts of the text.
BLOCK = 256
RANDOM = 256
# A token is marked if its weight is at least this share of the largest in the excerpt.
MARKED = 0.3


@dataclass(frozen=True)
class Material:
    """The excerpts of one unit.

    Attributes:
        active: excerpts in which it is active, of all intervals; its active tokens are marked.
        inactive: excerpts in which it is not active; as many tokens are marked, at the same distances.
        rate: share of random excerpts of the text in which it is active.
    """

    active: list[Excerpt]
    inactive: list[Excerpt]
    rate: float


def materials(
    model: Any, excerpts: Excerpts, units: Sequence[Unit], count: int, used: Sequence[frozenset[tuple[str, str]]]
) -> list[Material]:
    """The excerpts of each unit of a block.

    Args:
        model: the model of the index.
        excerpts: makes excerpts.
        units: the block.
        count: active excerpts of a unit, and inactive ones, at most.
        used: labels and names of documents that must not be used for each unit, because its explainer saw them.
    """
    own = [
        by_turns((one for one in excerpts.of(unit, "score") if one.source not in seen), count)
        for unit, seen in zip(units, used, strict=True)
    ]
    random = _random(excerpts)
    pool = list({(one.window, one.position): one for one in [one for few in own for one in few] + random}.values())
    weights = _weights(model, excerpts, pool, units)
    place = {(one.window, one.position): n for n, one in enumerate(pool)}
    highest_PU = torch.stack([weight_TU.amax(0) for weight_TU in weights]) if weights else torch.zeros(0, len(units))
    random_P = [place[one.window, one.position] for one in random]
    others_P = sorted({place[one.window, one.position] for few in own for one in few})
    found = []
    for column, unit in enumerate(units):
        active = [_marked(one, weights[place[one.window, one.position]][:, column]) for one in own[column]]
        candidates = [pool[n] for n in others_P if not highest_PU[n, column] > 0]
        candidates = [one for one in candidates if one.source not in used[column]]
        if len(candidates) < len(active):  # a list of few units
            more = [pool[n] for n in random_P if not highest_PU[n, column] > 0]
            candidates += [one for one in more if one.source not in used[column]]
        chosen = _drawn(candidates, len(active), unit, excerpts.seed)
        inactive = [_like(one, active[n % len(active)]) for n, one in enumerate(chosen)]
        rate = float((highest_PU[random_P, column] > 0).float().mean()) if random_P else 0.0
        found.append(Material(active, inactive, rate))
    return found


def _weights(model: Any, excerpts: Excerpts, pool: Sequence[Excerpt], units: Sequence[Unit]) -> list[Tensor]:
    """Weights of the units at the tokens of each excerpt, (T, U) float32; one forward pass for each window."""
    by_window: dict[int, list[int]] = {}
    for n, one in enumerate(pool):
        by_window.setdefault(one.window, []).append(n)
    found: dict[int, Tensor] = {}
    for number, places in sorted(by_window.items()):
        weight_TU = unit_weights(model, excerpts.index.windows[number], units)
        for n in places:
            found[n] = weight_TU[pool[n].start : pool[n].start + len(pool[n].ids)].clone()
    return [found[n] for n in range(len(pool))]


def _random(excerpts: Excerpts) -> list[Excerpt]:
    """Random excerpts of the documents for scoring."""
    windows = excerpts.index.windows
    generator = np.random.default_rng(excerpts.seed)
    found: list[Excerpt] = []
    for number in generator.permutation(windows.number_W):
        window = windows[int(number)]
        begin, end = excerpts.document_of(window)
        if side_of(window.label, window.document, excerpts.seed) == "score" and begin < end:
            one = excerpts.at(window, int(generator.integers(begin, end)))
            found += [] if one is None else [one]
        if len(found) == RANDOM:
            break
    return found


def _drawn(candidates: Sequence[Excerpt], count: int, unit: Unit, seed: int) -> list[Excerpt]:
    """Random ones; the same for a unit in any list that offers the same candidates."""

    def key(one: Excerpt) -> bytes:
        return hashlib.sha256(f"{seed} {unit.name} {one.window} {one.position}".encode()).digest()

    chosen = {one.window: one for one in sorted(candidates, key=key, reverse=True)}
    return [replace(one, weight=0.0, interval=-1) for one in sorted(chosen.values(), key=key)[:count]]


def _marked(one: Excerpt, weight_T: Tensor) -> Excerpt:
    marks = (weight_T >= MARKED * weight_T.max()).nonzero().view(-1).tolist() if float(weight_T.max()) > 0 else []
    return one.marked({*marks, one.center})


def _like(one: Excerpt, model: Excerpt) -> Excerpt:
    """The excerpt with marks at the distances from its center that another one has."""
    return one.marked({place - model.center + one.center for place in model.marks} | {one.center})
