"""The divergence of a student's next-token probabilities from a teacher's, with bounded memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of logits that are in float32 at a time.
ROWS_AT_ONCE = 256


def kl_divergence(
    logits_BTV: Tensor, states_BTD: Tensor, head_VD: Tensor, labels_BT: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) in nats per token, times temperature squared; positions with label -100 do not count.

    Both models' logits are divided by the temperature. The factor keeps the size of gradients (arXiv 1503.02531).
    Besides the student's logits and their gradient, only `ROWS_AT_ONCE` rows of logits are in memory, in float32.

    Args:
        logits_BTV: the student's logits, any floating dtype.
        states_BTD: the teacher's final states; no gradient reaches them.
        head_VD: weight of the teacher's output head.
        labels_BT: int64.
        temperature: positive.
    Returns:
        float32 scalar, 0 without labels. At most one backward pass, without higher derivatives.
    """
    return _Divergence.apply(logits_BTV, states_BTD.detach(), head_VD.detach(), labels_BT, temperature)  # type: ignore


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_BTV: Tensor, states_BTD: Tensor, head_VD: Tensor, labels_BT: Tensor, temperature: float
    ) -> Tensor:
        logits_NV, states_ND = logits_BTV.flatten(0, 1), states_BTD.flatten(0, 1)
        counts_N = labels_BT.flatten() != -100
        number = counts_N.sum().clamp(min=1)
        needed = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(logits_NV) if needed else None
        total = torch.zeros((), device=logits_NV.device, dtype=torch.float32)
        for start in range(0, len(logits_NV), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            teacher = F.linear(states_ND[rows].to(head_VD.dtype), head_VD).float() / temperature
            log_p, log_q = teacher.log_softmax(-1), (logits_NV[rows].float() / temperature).log_softmax(-1)
            p = log_p.exp()
            weight = counts_N[rows].float()
            total += ((p * (log_p - log_q)).sum(-1) * weight).sum()
            if gradient_NV is not None:
                gradient_NV[rows] = ((log_q.exp_() - p) * (weight * temperature / number)[:, None]).to(logits_NV.dtype)
        ctx.gradient_NV = gradient_NV
        ctx.shape = logits_BTV.shape
        return total * temperature**2 / number

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        if gradient_NV is None:
            return None, None, None, None, None
        return gradient_NV.mul_(gradients[0]).view(ctx.shape), None, None, None, None
