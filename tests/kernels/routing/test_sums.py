"""The training forward of the routing: means compared token by token, their gradients, and refused arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from monet.kernels.routing.op import batch_statistics, route_with_losses, thresholded_softmax
from tests.kernels.cases import DTYPES, SPREADS, head_values, routed_from_the_definition, weights_of
from tests.tolerances import assert_close

T, H, E = 9, 3, 6
THRESHOLD_H, WIDTH_H = head_values(H)


def one_by_one(z_TP: Tensor, weight_T: Tensor | None, spread: str) -> tuple[Tensor, ...]:
    """Every mean as a loop over tokens in float64."""
    z_THE = z_TP.double().unflatten(1, (H, E))
    g_THE = routed_from_the_definition(z_THE, THRESHOLD_H)
    mean_HE, share_HE, mean_max_H = torch.zeros(H, E).double(), torch.zeros(H, E).double(), torch.zeros(H).double()
    fired_HE = torch.zeros(H, E, dtype=torch.int64)
    for t in range(T):
        weight = 1 / T if weight_T is None else weight_T[t].double().item()
        mean_HE += weight * g_THE[t]
        mean_max_H += weight * g_THE[t].max(-1).values
        fired_HE += (g_THE[t] > 0) & (weight > 0)
        for h in range(H):
            row = z_THE[t, h]
            smooth = row.exp() / row.exp().sum() if spread == "softmax" else torch.zeros(E).double()
            if spread == "firing":
                smooth = 1 / (1 + ((THRESHOLD_H[h] - row) / WIDTH_H[h]).exp())
            share_HE[h] += weight * smooth
    return (g_THE.flatten(1), mean_HE, mean_max_H, fired_HE, *([] if spread == "routing" else [share_HE]))


@pytest.mark.parametrize("grad", [False, True], ids=["no gradient", "gradient"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["all tokens", "padding"])
@pytest.mark.parametrize("spread", SPREADS)
def test_means_are_those_of_the_tokens_one_by_one(spread, weighted, dtype, overwrite, grad):
    z_TP, weight_T = (2 * torch.randn(T, H * E)).to(dtype), weights_of(T, weighted)
    leaf = z_TP.clone().requires_grad_(grad)
    routed = route_with_losses(
        leaf * 1.0, THRESHOLD_H, weight_T, WIDTH_H, spread=spread, overwrite=overwrite
    )  # fmt: skip
    if spread == "routing":
        assert routed.share_HE is None
    wanted = one_by_one(z_TP, weight_T, spread)
    for name, ours, theirs in zip(routed._fields, routed, wanted, strict=False):
        if name == "fired_HE":
            assert ours.dtype == torch.int64 and torch.equal(ours, theirs)
            continue
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        assert ours.requires_grad == grad, name
        # the weights are float32
        assert_close(name, ours, theirs, torch.float32)


def test_the_argument_is_left_alone_unless_given_up():
    for spread in SPREADS:
        z_TP = torch.randn(T, H * E)
        before = z_TP.clone()
        route_with_losses(z_TP, THRESHOLD_H, None, WIDTH_H, spread=spread)
        assert torch.equal(z_TP, before)


@pytest.mark.parametrize("weighted", [False, True], ids=["all tokens", "padding"])
@pytest.mark.parametrize("spread", SPREADS)
def test_gradcheck(spread, weighted):
    weight_T = weights_of(T, weighted)
    weight_T = None if weight_T is None else weight_T.double()

    def floats(z_TP: Tensor) -> tuple[Tensor, ...]:
        routed = route_with_losses(z_TP, THRESHOLD_H, weight_T, WIDTH_H, spread=spread)
        return tuple(part for part in routed if part is not None and part.is_floating_point())

    assert torch.autograd.gradcheck(floats, (2 * torch.randn(T, H * E, dtype=torch.float64)).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_probabilities_in_another_dtype(dtype):
    z_TP = torch.randn(T, H * E, requires_grad=True)
    wanted = thresholded_softmax(z_TP, THRESHOLD_H)
    for got in (
        thresholded_softmax(z_TP, THRESHOLD_H, dtype=dtype),
        route_with_losses(z_TP, THRESHOLD_H, dtype=dtype).g_TP,
    ):
        assert torch.equal(got, wanted.to(dtype)) and got.dtype == dtype
    assert route_with_losses(z_TP, THRESHOLD_H, dtype=dtype).mean_HE.dtype == torch.float32


def test_no_tokens():
    routed = route_with_losses(torch.zeros(0, H * E), THRESHOLD_H, None, WIDTH_H, spread="firing")
    assert all(part.eq(0).all() for part in routed)
    assert [tuple(part.shape) for part in routed] == [(0, H * E), (H, E), (H,), (H, E), (H, E)]


def test_what_is_refused():
    z_TP, weight_T = torch.randn(T, H * E), torch.ones(T)
    for arguments, options, message in [
        ((z_TP, THRESHOLD_H[:0]), {}, r"threshold_H has shape \(0,\)"),
        ((z_TP.long(), THRESHOLD_H), {}, r"z_TP has dtype torch\.int64"),
        ((z_TP, THRESHOLD_H.to("meta")), {}, "threshold_H is on meta, z_TP on cpu"),
        ((z_TP, THRESHOLD_H, weight_T[:-1]), {}, r"weight_T has shape \(8,\); expected \(9\)"),
        ((z_TP, THRESHOLD_H, weight_T > 0), {}, r"weight_T has dtype torch\.bool"),
        ((z_TP, THRESHOLD_H, weight_T.to("meta")), {}, "weight_T is on meta"),
        ((z_TP, THRESHOLD_H), {"spread": "fire"}, "spread='fire'; use 'routing', 'softmax' or 'firing'"),
        ((z_TP, THRESHOLD_H), {"spread": "firing"}, "needs width_H"),
        ((z_TP, THRESHOLD_H, None, WIDTH_H[:2]), {"spread": "firing"}, r"width_H has shape \(2,\); expected \(3\)"),
        ((z_TP, THRESHOLD_H), {"dtype": torch.int64}, r"dtype=torch\.int64; use one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            route_with_losses(*arguments, **options)
    z_BTHE = z_TP.view(1, T, H, E)
    for arguments, message in [
        ((z_TP,), r"z_BTHE has shape \(9, 18\); expected \(any, any, any, any\)"),
        ((z_BTHE.long(),), r"z_BTHE has dtype torch\.int64"),
        ((z_BTHE, torch.ones(T, 1).bool()), r"token_mask_BT has shape \(9, 1\); expected \(1, 9\)"),
        ((z_BTHE, torch.ones(1, T)), r"token_mask_BT has dtype torch\.float32; cast it to torch\.bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch_statistics(*arguments)


def test_a_threshold_at_infinity_has_a_finite_step():
    z_TP = torch.randn(T, H * E, requires_grad=True)
    everything = torch.full((H,), -math.inf, dtype=torch.float64)
    share_HE = route_with_losses(z_TP, everything, None, WIDTH_H, spread="firing").share_HE
    torch.testing.assert_close(share_HE, torch.ones(H, E))
    share_HE.sum().backward()
    assert z_TP.grad.eq(0).all()
