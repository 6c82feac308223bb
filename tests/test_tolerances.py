"""The table of tolerances must allow rounding errors and no others."""

import pytest
import torch

from tests.tolerances import RELATIVE_RMS, assert_close

E, H, M, T = 16, 4, 4, 32


def mixed(x_TEM, g1_THE, g2_THE, b_ED):
    """Horizontal mixing and its bias in the given dtype, by the definition of the expert weights."""
    w_TEE = torch.einsum("thi,thj->tij", g1_THE, g2_THE)
    y_TEM = torch.einsum("tij,tim->tjm", w_TEE, x_TEM)
    return torch.cat([y_TEM.flatten(1), w_TEE.sum(1) @ b_ED], dim=1)


def example():
    generator = torch.Generator().manual_seed(1)
    x_TEM = torch.randn(T, E, M, generator=generator, dtype=torch.float64).relu().square()
    g1_THE, g2_THE = torch.randn(2, T, H, E, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    # biases are small compared with the rest, but a dropped bias must still be detected
    return x_TEM, g1_THE, g2_THE, 0.1 * torch.randn(E, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)
def test_rounding_passes(dtype):
    inputs = example()
    assert_close("mixed", mixed(*(part.to(dtype) for part in inputs)), mixed(*inputs), dtype)


@pytest.mark.parametrize("dtype", RELATIVE_RMS, ids=str)
@pytest.mark.parametrize(
    "fault", ["zeros", "bias dropped", "i and j swapped", "one token missing", "nan", "off by 5 %"]
)
def test_faults_fail(dtype, fault):
    x_TEM, g1_THE, g2_THE, b_ED = example()
    wanted = mixed(x_TEM, g1_THE, g2_THE, b_ED)
    got = wanted.clone()
    if fault == "zeros":
        got.zero_()
    elif fault == "bias dropped":
        got = mixed(x_TEM, g1_THE, g2_THE, 0 * b_ED)
    elif fault == "i and j swapped":
        got = mixed(x_TEM, g2_THE, g1_THE, b_ED)
    elif fault == "one token missing":
        got[T // 2] = 0
    elif fault == "nan":
        got[0, 0] = float("nan")
    else:
        got *= 1.05
    with pytest.raises(AssertionError, match="mixed"):
        assert_close("mixed", got, wanted, dtype)


def test_shape_and_reference_are_checked_first():
    with pytest.raises(AssertionError, match=r"shape \(2,\), wanted \(3,\)"):
        assert_close("y", torch.zeros(2), torch.zeros(3))
    with pytest.raises(AssertionError, match="reference itself"):
        assert_close("y", torch.zeros(1), torch.full((1,), float("inf")))
    assert_close("both zero", torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError, match="inf"):
        assert_close("only the reference is zero", torch.full((3,), 1e-30), torch.zeros(3))
