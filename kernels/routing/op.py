"""Routing for use: the reference's results in place, chunk by chunk, saving nothing but the probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monet.kernels.checks import check_float, check_shape
from monet.kernels.dispatch import enter_torch, resolve
from monet.kernels.routing import reference

# A chunk of logits stays in the last-level cache while it is compared, masked and normalised.
_CHUNK_ELEMENTS = 1 << 19
# While a row's maximum is so near its bound, subtracting the bound loses less than a rounding of the result, and the
# comparison becomes torch's threshold, which is several times faster than filling by a boolean mask.
_SAFE_SPAN = 16.0
# For fewer tokens finding that out costs more than it saves.
_WORTH_CHECKING_TOKENS = 8


def thresholded_softmax(z_TP: Tensor, threshold_H: Tensor, *, overwrite: bool = False) -> Tensor:
    """Softmax over the keys whose logit reaches min(row maximum, threshold of the head).

    Args:
        z_TP: logits of T tokens (a whole batch, flattened), P = H*E with the head as the slow index; any floating
            dtype, contiguous.
        threshold_H: threshold on raw logits per head, see `monet.kernels.routing.reference.raw_threshold`.
        overwrite: the caller gives `z_TP` up; float32 logits are then turned into the result in place.
    Returns:
        g_TP, float32 (float64 for float64 logits): exactly 0 at inactive keys, each head's E entries sum to 1.
        Gradients flow through the active logits alone, never through the threshold.
    Raises:
        ValueError: P is no multiple of the number of heads, or a dtype is not floating.
    Source: arXiv 2412.04139, section 3; released router.
    """
    check_float("z_TP", z_TP)
    check_shape("z_TP", z_TP, (None, None))
    if threshold_H.dim() != 1 or threshold_H.numel() == 0 or z_TP.shape[1] % threshold_H.numel():
        raise ValueError(
            f"threshold_H has shape {tuple(threshold_H.shape)}; wanted (H,) with H dividing the {z_TP.shape[1]} logits"
        )
    return resolve("thresholded_softmax", z_TP)(z_TP, threshold_H, overwrite)


def _thresholded_softmax(z_TP: Tensor, threshold_H: Tensor, overwrite: bool) -> Tensor:
    if z_TP.dtype in (torch.float16, torch.bfloat16):
        z_TP, overwrite = z_TP.float(), True
    if torch.compiler.is_compiling():
        z_THE = z_TP.unflatten(1, (threshold_H.numel(), -1))
        return reference.thresholded_softmax(z_THE, threshold_H).flatten(1)
    if torch.is_grad_enabled() and z_TP.requires_grad:
        return _ThresholdedSoftmax.apply(z_TP if overwrite else z_TP.clone(), threshold_H)
    return _softmax_in_place(z_TP if overwrite else z_TP.clone(), threshold_H)


enter_torch("thresholded_softmax", _thresholded_softmax)


def _softmax_in_place(z_TP: Tensor, threshold_H: Tensor) -> Tensor:
    T, P = z_TP.shape
    z_THE = z_TP.view(T, threshold_H.numel(), P // threshold_H.numel())
    threshold_H1 = threshold_H.to(z_TP.dtype)[:, None]
    for z_tHE in [z_THE] if z_TP.is_cuda else z_THE.split(max(1, _CHUNK_ELEMENTS // P)):
        max_tH1 = z_tHE.amax(-1, keepdim=True)
        bound_tH1 = torch.minimum(max_tH1, threshold_H1)
        if z_TP.device.type == "cpu" and T >= _WORTH_CHECKING_TOKENS and bool((max_tH1 - bound_tH1).max() < _SAFE_SPAN):
            # A difference is never rounded to zero, so "not below the bound" is "greater than minus the tiniest".
            z_tHE.sub_(bound_tH1)
            torch.threshold_(z_tHE, -torch.finfo(z_TP.dtype).tiny, -math.inf)
        else:
            z_tHE.masked_fill_(z_tHE < bound_tH1, -math.inf)
        torch.softmax(z_tHE, -1, out=z_tHE)
    return z_TP


class _ThresholdedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_TP: Tensor, threshold_H: Tensor) -> Tensor:
        ctx.mark_dirty(z_TP)
        g_TP = _softmax_in_place(z_TP, threshold_H)
        ctx.save_for_backward(g_TP)
        ctx.num_heads = threshold_H.numel()
        return g_TP

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dg_TP: Tensor) -> tuple[Tensor, None]:
        (g_TP,) = ctx.saved_tensors
        g_THE = g_TP.view(g_TP.shape[0], ctx.num_heads, g_TP.shape[1] // ctx.num_heads)
        dg_THE = dg_TP.contiguous().view_as(g_THE)
        return torch.ops.aten._softmax_backward_data(dg_THE, g_THE, -1, g_THE.dtype).view_as(g_TP), None
