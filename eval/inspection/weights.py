"""The weight of chosen units at every token of a window, by a forward pass that stops at the last router it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monet.eval.core.loading import evaluating
from monet.eval.index.text import Window
from monet.eval.index.units import Unit


class _Enough(Exception):
    """Ends a forward pass."""


def unit_weights(model: Any, window: Window, units: Sequence[Unit]) -> Tensor:
    """Weights of units at the tokens of a window, boundary tokens included: float32 (T, len(units)) on the CPU.

    Args:
        model: a Monet model.
        window: the window.
        units: experts and halves of any groups.
    """
    found = torch.zeros(len(window.ids), len(units))
    if not units:
        return found
    last = max(unit.group for unit in units)

    def hook(group: int, output: Any) -> None:
        g1_THE, g2_THE = (g[0].double() for g in (output.g1_BTHE, output.g2_BTHE))
        for column, unit in enumerate(units):
            if unit.group == group:
                one_TH, other_TH = (
                    torch.ones(()) if key is None else g_THE[:, :, key].cpu()
                    for g_THE, key in ((g1_THE, unit.i), (g2_THE, unit.j))
                )
                found[:, column] = (one_TH * other_TH).sum(-1).float()
        if group == last:
            raise _Enough

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for group, router in enumerate(model.routers()[: last + 1]):
            handle = router.register_forward_hook(lambda _, __, output, group=group: hook(group, output))
            stack.callback(handle.remove)
        given: dict[str, Any] = {"input_ids": torch.tensor([window.ids], device=model.device)}
        if window.position_ids is not None:
            given["position_ids"] = torch.tensor([window.position_ids], device=model.device)
        with contextlib.suppress(_Enough):
            model.base_model(**given, use_cache=False)
    return found
