"""Gates made again in backward from the logits they came from, where those are saved anyway.

With losses the routing keeps its logits for backward, and each layer that mixes would keep the gates beside them: one
of the two is enough. The gates are made again once for all layers of a group, and last as long as the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monet.kernels.notes import note, noted
from monet.kernels.routing.op import thresholded_softmax


class Kept(NamedTuple):
    """How one tensor of gates was saved: as it is, or, with a shape, as its logits and threshold."""

    shape: torch.Size | None
    dtype: torch.dtype


def keep(gates: Sequence[Tensor]) -> tuple[list[Tensor], list[Kept]]:
    """What to save for backward in place of gates, and how to `restore` them."""
    tensors, plan = [], []
    for g_THE in gates:
        origin = _origin(g_THE)
        tensors += [g_THE] if origin is None else [origin[0].detach(), origin[1]]
        plan.append(Kept(None if origin is None else g_THE.shape, g_THE.dtype))
    return tensors, plan


def restore(tensors: Sequence[Tensor], plan: Sequence[Kept]) -> list[Tensor]:
    """The gates, from what `keep` said to save."""
    remaining, gates = list(tensors), []
    for kept in plan:
        first = remaining.pop(0)
        gates.append(first if kept.shape is None else _again(first, remaining.pop(0), kept.dtype).view(kept.shape))
    return gates


def _origin(g_THE: Tensor) -> tuple[Tensor, Tensor] | None:
    """The logits and thresholds that `route_with_losses` made the gates of, if somebody else still keeps them."""
    found = noted(g_THE, "origin")
    if found is None:
        return None
    reference, version, threshold_H = found
    z_TP = reference()
    return None if z_TP is None or z_TP._version != version else (z_TP, threshold_H)


def _again(z_TP: Tensor, threshold_H: Tensor, dtype: torch.dtype) -> Tensor:
    found = noted(z_TP, "gates")
    if found is not None and found[0].data_ptr() == threshold_H.data_ptr() and found[1].dtype == dtype:
        return found[1]
    g_TP = thresholded_softmax(z_TP, threshold_H, dtype=dtype)
    note(z_TP, "gates", (threshold_H, g_TP))
    return g_TP
