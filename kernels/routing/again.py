"""Recomputes gates in backward from their logits, if the logits are saved anyway.

With losses the routing keeps its logits for backward, and each layer that mixes would also keep the gates. One of the
two is enough. The gates are recomputed once for all layers of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monet.kernels.routing.op import thresholded_softmax
from monet.kernels.shared import Facts, GateFacts


class Kept(NamedTuple):
    """How one tensor of gates was saved: directly, or, with a shape, as its logits and threshold."""

    shape: torch.Size | None
    dtype: torch.dtype
    facts: GateFacts | None


def keep(gates: Sequence[Tensor], facts: Facts) -> tuple[list[Tensor], list[Kept]]:
    """Choose what to save for backward in place of gates, and how to `restore` them."""
    tensors, plan = [], []
    for g_THE, known in zip(gates, facts, strict=True):
        origin = None if known is None else known.origin()
        tensors += [g_THE] if origin is None else [origin[0].detach(), origin[1]]
        plan.append(Kept(None if origin is None else g_THE.shape, g_THE.dtype, known))
        if known is not None:
            known.saved()
    return tensors, plan


def restore(tensors: Sequence[Tensor], plan: Sequence[Kept]) -> list[Tensor]:
    """The gates, from the tensors that `keep` chose to save."""
    remaining, gates = list(tensors), []
    for kept in plan:
        first = remaining.pop(0)
        gates.append(first if kept.shape is None else _again(first, remaining.pop(0), kept).view(kept.shape))
    return gates


def facts_in(plan: Sequence[Kept]) -> Facts:
    """The facts about restored gates."""
    first, second = (kept.facts for kept in plan)
    return first, second


def done(plan: Sequence[Kept]) -> None:
    """Record that one node has used restored gates, so that the last node of the group frees the shared tensors."""
    for kept in plan:
        if kept.facts is not None:
            kept.facts.read()


def _again(z_TP: Tensor, threshold_H: Tensor, kept: Kept) -> Tensor:
    made = None if kept.facts is None else kept.facts.gates_again
    if made is None or made.dtype != kept.dtype:
        made = thresholded_softmax(z_TP, threshold_H, dtype=kept.dtype)
        if kept.facts is not None:
            kept.facts.gates_again = made
    return made
