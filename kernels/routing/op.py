"""Routing for production use: computes the reference's results in place and in chunks; saves only probabilities."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monet.kernels import limits
from monet.kernels.checks import FLOATS, check_float, check_same_device, check_shape
from monet.kernels.dispatch import backend, enter_torch, resolve
from monet.kernels.routing import reference
from monet.kernels.shared import GateFacts

# If a row's maximum is this close to its bound, subtracting the bound loses less than one rounding of the result. The
# comparison then becomes torch's threshold, which is several times faster than filling by a boolean mask.
SAFE_SPAN = 16.0
# For fewer tokens this check costs more than it saves.
_WORTH_CHECKING_TOKENS = 8


def thresholded_softmax(
    z_TP: Tensor, threshold_H: Tensor, *, overwrite: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Softmax over the keys whose logit reaches min(row maximum, the head's threshold).

    Args:
        z_TP: logits of T tokens (a whole batch, flattened), P = H*E with the head as the slow index; any floating
            dtype.
        threshold_H: threshold on raw logits per head, see `monet.kernels.routing.reference.raw_threshold`.
        overwrite: the caller no longer needs `z_TP`; float32 logits may be turned into the result in place.
        dtype: data type of the result; None for float32 (float64 for float64 logits). The softmax itself always uses
            float32: in bfloat16 a head's entries sum to 1 within 0.4 %.
    Returns:
        g_TP: exactly 0 at inactive keys, each head's E entries sum to 1.
        Gradients flow only through the active logits, never through the threshold.
    Raises:
        ValueError: P is not a multiple of the number of heads, or a dtype is not floating.
    Source: arXiv 2412.04139, section 3; released router.
    """
    _check_logits(z_TP, threshold_H, dtype)
    return resolve("thresholded_softmax", z_TP)(z_TP, threshold_H, overwrite, dtype)


def route_with_losses(
    z_TP: Tensor,
    threshold_H: Tensor,
    weight_T: Tensor | None = None,
    width_H: Tensor | None = None,
    *,
    spread: reference.Spread = "routing",
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> reference.RoutingSums:
    """Thresholded softmax, with the means over tokens from which losses and metrics are computed.

    Args:
        z_TP, threshold_H, overwrite, dtype: see `thresholded_softmax`.
        weight_T: float32, the share of each token in the means; a token of weight 0 does not count as fired either.
            None: every token counts 1/T.
        width_H: width of the smooth step on raw logits per head; for "firing" only.
        spread: also return the mean over tokens of the softmax of all keys ("softmax") or of the smooth step
            sigmoid((z - threshold) / width) ("firing"); "routing" returns neither.
    Returns:
        RoutingSums. Gradients flow from g_TP, mean_HE, mean_max_H and share_HE to the logits, never to the threshold,
        weights or width. Means are float32 (float64 for float64 logits).
    Raises:
        ValueError: see `thresholded_softmax`; also if `weight_T` or `width_H` has a wrong shape, or if "firing" comes
            without widths.
    Source: arXiv 2412.04139, eq. 16 and 17.
    """
    _check_logits(z_TP, threshold_H, dtype)
    if spread not in ("routing", "softmax", "firing"):
        raise ValueError(f"spread={spread!r}; use 'routing', 'softmax' or 'firing'")
    if weight_T is not None:
        check_float("weight_T", weight_T)
        check_shape("weight_T", weight_T, (z_TP.shape[0],))
        check_same_device("z_TP", z_TP, weight_T=weight_T)
    if spread == "firing":
        if width_H is None:
            raise ValueError("spread='firing' needs width_H, the width of the step for each head")
        check_shape("width_H", width_H, tuple(threshold_H.shape))
    return resolve("route_with_losses", z_TP)(z_TP, threshold_H, weight_T, width_H, spread, overwrite, dtype)


def rounds_in_kernel(z_TP: Tensor) -> bool:
    """Whether rounding a half-precision result, and its gradient, differ from those of a float32 result cast to it."""
    return z_TP.dtype.itemsize < 4 and backend("thresholded_softmax", z_TP) == "triton"


def facts_about_gates(z_TP: Tensor, threshold_H: Tensor, with_losses: bool) -> GateFacts | None:
    """Facts about the gates of one axis that the layers of a group can share.

    Args:
        z_TP, threshold_H: the logits and thresholds that the gates were computed from.
        with_losses: whether `route_with_losses` computed the gates.
    Returns:
        None if plain torch computed the gates. Plain torch shares nothing: it makes no lists of active keys, and may
        have overwritten the logits with the gates.
    """
    if torch.compiler.is_compiling() or backend("route_with_losses", z_TP) != "triton":
        return None
    if with_losses and torch.is_grad_enabled() and z_TP.requires_grad:
        return GateFacts(z_TP, threshold_H)
    return GateFacts()


def batch_statistics(z_BTHE: Tensor, token_mask_BT: Tensor | None = None) -> reference.BatchStatistics:
    """Per-head moments over all logits of the unmasked tokens, accumulated without cancellation.

    Args:
        z_BTHE: router logits, any floating dtype; no gradient flows through.
        token_mask_BT: bool, True at tokens that count; if None, all tokens count.
    Returns:
        BatchStatistics in float64; mean and m2 are zero when no token counts.
    Raises:
        ValueError: a shape or dtype does not match.
    """
    check_float("z_BTHE", z_BTHE)
    check_shape("z_BTHE", z_BTHE, (None, None, None, None))
    if token_mask_BT is not None:
        check_shape("token_mask_BT", token_mask_BT, tuple(z_BTHE.shape[:2]))
        if token_mask_BT.dtype != torch.bool:
            raise ValueError(f"token_mask_BT has dtype {token_mask_BT.dtype}; cast it to torch.bool")
    return resolve("batch_statistics", z_BTHE)(z_BTHE, token_mask_BT)


def _check_logits(z_TP: Tensor, threshold_H: Tensor, dtype: torch.dtype | None) -> None:
    check_float("z_TP", z_TP)
    check_shape("z_TP", z_TP, (None, None))
    if threshold_H.dim() != 1 or threshold_H.numel() == 0 or z_TP.shape[1] % threshold_H.numel():
        raise ValueError(
            f"threshold_H has shape {tuple(threshold_H.shape)}; expected (H,); H must divide {z_TP.shape[1]} logits"
        )
    check_same_device("z_TP", z_TP, threshold_H=threshold_H)
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype={dtype}; use one of {', '.join(map(str, FLOATS))}")


def _thresholded_softmax(
    z_TP: Tensor, threshold_H: Tensor, overwrite: bool, dtype: torch.dtype | None = None
) -> Tensor:
    g_TP = _at_least_float32(z_TP, threshold_H, overwrite)
    return g_TP if dtype is None else g_TP.to(dtype)


def _at_least_float32(z_TP: Tensor, threshold_H: Tensor, overwrite: bool) -> Tensor:
    if z_TP.dtype in (torch.float16, torch.bfloat16):
        z_TP, overwrite = z_TP.float(), True
    if torch.compiler.is_compiling():
        z_THE = z_TP.unflatten(1, (threshold_H.numel(), -1))
        return reference.thresholded_softmax(z_THE, threshold_H).flatten(1)
    if torch.is_grad_enabled() and z_TP.requires_grad:
        return _ThresholdedSoftmax.apply(z_TP if overwrite else z_TP.clone(), threshold_H)
    return _softmax_in_place(z_TP if overwrite else z_TP.clone(), threshold_H)


def _route_with_losses(
    z_TP: Tensor,
    threshold_H: Tensor,
    weight_T: Tensor | None,
    width_H: Tensor | None,
    spread: reference.Spread,
    overwrite: bool,
    dtype: torch.dtype | None = None,
) -> reference.RoutingSums:
    # With a share, backward needs the logits.
    softmax = functools.partial(_at_least_float32, overwrite=overwrite and spread == "routing")
    sums = reference.route_with_losses(z_TP, threshold_H, weight_T, width_H, spread, softmax)
    return sums if dtype is None else sums._replace(g_TP=sums.g_TP.to(dtype))


enter_torch("thresholded_softmax", _thresholded_softmax)
enter_torch("route_with_losses", _route_with_losses)
enter_torch("batch_statistics", reference.batch_statistics)


def _softmax_in_place(z_TP: Tensor, threshold_H: Tensor) -> Tensor:
    T, P = z_TP.shape
    z_THE = z_TP.view(T, threshold_H.numel(), P // threshold_H.numel())
    threshold_H1 = threshold_H.to(z_TP.dtype)[:, None]
    for z_tHE in [z_THE] if z_TP.is_cuda else z_THE.split(max(1, limits.LOGIT_ELEMENTS // P)):
        max_tH1 = z_tHE.amax(-1, keepdim=True)
        bound_tH1 = torch.minimum(max_tH1, threshold_H1)
        if z_TP.device.type == "cpu" and T >= _WORTH_CHECKING_TOKENS and bool((max_tH1 - bound_tH1).max() < SAFE_SPAN):
            # A difference never rounds to zero, so "not below the bound" means "greater than minus the tiniest".
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
