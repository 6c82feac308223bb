"""The one table of tolerances: how far a result may be from its reference, as rms(error) / rms(reference)."""

from __future__ import annotations

import torch

# float32 and float64 allow another order of summation; the half types allow one rounding of each intermediate result.
RELATIVE_RMS: dict[torch.dtype, float] = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}


def relative_rms(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """rms(got - wanted) / rms(wanted), in float64; 0 if both are zero, inf if only the reference is zero."""
    got, wanted = got.detach().double(), wanted.detach().double()
    error, scale = (got - wanted).square().mean().sqrt().item(), wanted.square().mean().sqrt().item()
    if scale == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / scale


def assert_close(name: str, got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Fail unless `got` has the shape of `wanted`, is finite, and is as close as the table allows.

    Args:
        name: name of the compared quantity, for the failure message.
        got, wanted: result and reference, of any floating dtypes.
        dtype: the row of the table; None uses the dtype of `got`.
    """
    limit = RELATIVE_RMS[dtype or got.dtype]
    assert got.shape == wanted.shape, f"{name}: shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
    assert torch.isfinite(wanted).all(), f"{name}: the reference itself is not finite"
    assert torch.isfinite(got).all(), f"{name}: {int((~torch.isfinite(got)).sum())} of {got.numel()} are not finite"
    error = relative_rms(got, wanted)
    assert error <= limit, f"{name}: rms(error)/rms(reference) = {error:.3e}, allowed {limit:.1e}"
