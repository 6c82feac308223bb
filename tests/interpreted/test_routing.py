"""Triton routing compared with float64 torch: exact active sets, sums over tokens, one backward for all, moments."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monet import MonetConfig
from monet.kernels.routing import reference, triton_op
from monet.kernels.routing.op import batch_statistics, route_with_losses, thresholded_softmax
from monet.model.losses import RouterLoss
from monet.model.router import MonetRouter
from tests.kernels.cases import (
    BAD_ROWS,
    DTYPES,
    LAYOUTS,
    LOGITS,
    SPREADS,
    THRESHOLDS,
    head_values,
    moments,
    weights_of,
    with_a_bad_row,
)
from tests.tolerances import assert_close

# T, H, E: only tails; whole tiles; one of everything; several tokens a tile and tiles a program; a long row.
SHAPES = [(5, 3, 6), (4, 2, 512), (1, 1, 1), (150, 1, 9), (9, 3, 600)]


@pytest.fixture(params=[1 << 11, 4], ids=["many programs", "few programs"])
def programs(request, monkeypatch):
    """Few programs take many tokens each, so that their loops run more than once."""
    for parameters in triton_op.LAUNCH.values():
        monkeypatch.setitem(parameters, "programs", request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("logits", LOGITS)
def test_active_sets_are_those_of_the_torch_op(logits, dtype, monkeypatch):
    T, H, E = 11, 3, 37
    z_TP = LOGITS[logits](T, H, E).flatten(1).to(dtype)
    for values in (*THRESHOLDS.values(), [math.inf, -math.inf, 0.0], z_TP[0, ::E].double().tolist()):
        threshold_H = torch.tensor(values, dtype=torch.float64)
        monkeypatch.setenv("MONET_KERNELS", "triton")
        got = thresholded_softmax(z_TP, threshold_H)
        monkeypatch.setenv("MONET_KERNELS", "torch")
        wanted = thresholded_softmax(z_TP, threshold_H)
        assert got.dtype == torch.float32
        assert torch.equal(got > torch.finfo(torch.float32).tiny, wanted > torch.finfo(torch.float32).tiny)
        assert torch.equal(got == 0, wanted == 0) or logits == "huge"
        assert_close("g", got, wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_sum_to_one_and_the_argument_is_left_alone(shape, programs):
    T, H, E = shape
    z_TP = 2 * torch.randn(T, H * E)
    before = z_TP.clone()
    g_TP = thresholded_softmax(z_TP, head_values(H)[0], overwrite=True)
    assert torch.equal(z_TP, before)
    torch.testing.assert_close(g_TP.view(T, H, E).sum(-1), torch.ones(T, H), rtol=0, atol=1e-6)
    assert torch.equal(thresholded_softmax(z_TP, head_values(H)[0]), g_TP), "results must be bitwise reproducible"


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_row_that_is_not_finite_shows_and_harms_no_other(fault):
    z_THE = with_a_bad_row(torch.randn(5, 2, 7), fault)
    g_THE = thresholded_softmax(z_THE.flatten(1), torch.zeros(2, dtype=torch.float64)).view(5, 2, 7)
    assert g_THE[3, 1].isnan().any()
    g_THE[3, 1] = 0
    assert g_THE.isfinite().all()


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_for_any_pair_of_dtypes(dtype, out):
    T, H, E = 7, 2, 21
    threshold_H, _ = head_values(H)
    z_TP = (2 * torch.randn(T, H * E)).to(dtype).requires_grad_()
    upstream = torch.randn(T, H * E)
    got = thresholded_softmax(z_TP, threshold_H, dtype=out)
    assert got.dtype == out
    got.backward(upstream.to(out))
    other = z_TP.detach().double().requires_grad_()
    wanted = reference.thresholded_softmax(other.view(T, H, E), threshold_H).flatten(1)
    wanted.backward(upstream.double())
    assert_close("g", got, wanted)
    assert z_TP.grad.dtype == dtype
    loosest = max((dtype, out), key=lambda d: torch.finfo(d).eps)
    assert_close("dz", z_TP.grad, other.grad, loosest)
    assert z_TP.grad[got == 0].eq(0).all()


def gradients_of_all(
    z_TP: Tensor, *values: object, spread: str, route=route_with_losses
) -> tuple[list[Tensor], Tensor]:
    """Every result of the op, and the logits' gradient for random upstream gradients of all results at once."""
    z_TP = z_TP.clone().requires_grad_()
    routed = route(z_TP, *values, spread=spread)
    results = [part for part in routed if isinstance(part, Tensor)]
    generator = torch.Generator().manual_seed(4)
    floats = [part for part in results if part.is_floating_point()]
    upstream = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in floats]
    # The mean over many tokens has a small gradient; scaled up, an error in it is visible next to that of g.
    upstream[1:] = [part * z_TP.shape[0] for part in upstream[1:]]
    (dz_TP,) = torch.autograd.grad(floats, z_TP, [u.to(part.dtype) for u, part in zip(upstream, floats, strict=True)])
    return results, dz_TP


@pytest.mark.parametrize("weighted", [False, True], ids=["all tokens", "padding"])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_their_gradients(shape, spread, weighted, programs):
    T, H, E = shape
    threshold_H, width_H = head_values(H)
    z_TP, weight_T = 1.5 * torch.randn(T, H * E), weights_of(T, weighted)
    got, dz_TP = gradients_of_all(z_TP, threshold_H, weight_T, width_H, spread=spread)
    doubles = (z_TP.double(), threshold_H, None if weight_T is None else weight_T.double(), width_H)
    wanted, wanted_dz_TP = gradients_of_all(*doubles, spread=spread, route=reference.route_with_losses)
    names = ("g", "mean", "mean of the maximum", "fired", "share")
    for name, ours, theirs in zip(names, got, wanted, strict=False):
        if name == "fired":
            assert ours.dtype == torch.int64 and torch.equal(ours, theirs)
        else:
            assert ours.dtype == torch.float32
            assert_close(name, ours, theirs)
    assert len(got) == len(wanted) == (4 if spread == "routing" else 5)
    assert_close("dz", dz_TP, wanted_dz_TP)
    assert torch.equal(gradients_of_all(z_TP, threshold_H, weight_T, width_H, spread=spread)[1], dz_TP)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_half_precision_logits(dtype, spread):
    """Computed in float32 from the unrounded logits; only their gradient is rounded."""
    T, H, E = 13, 2, 33
    threshold_H, width_H = head_values(H)
    z_TP = (1.5 * torch.randn(T, H * E)).to(dtype)
    got, dz_TP = gradients_of_all(z_TP, threshold_H, None, width_H, spread=spread)
    wanted, wanted_dz_TP = gradients_of_all(
        z_TP.double(), threshold_H, None, width_H, spread=spread, route=reference.route_with_losses
    )
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == (torch.float32 if ours.is_floating_point() else torch.int64)
        assert_close("result", ours, theirs, torch.float32)
    assert dz_TP.dtype == dtype
    assert_close("dz", dz_TP, wanted_dz_TP)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_the_probabilities_makes_no_keys_tie(dtype):
    """Half gates of distinct logits may be equal; the mean maximum's gradient still belongs to the larger logit."""
    z_TP = torch.tensor([[0.0, 2**-14, -1.0], [2**-14, 2**-14, 0.0]]).to(dtype)
    threshold_H = torch.tensor([-3.0], dtype=torch.float64)

    def gradient(z_TP: Tensor, route: Callable, **options) -> tuple[Tensor, Tensor]:
        leaf = z_TP.clone().requires_grad_()
        routed = route(leaf, threshold_H, **options)
        return routed.g_TP, torch.autograd.grad(routed.mean_max_H.sum(), leaf)[0]

    g_TP, got = gradient(z_TP, route_with_losses, dtype=dtype)
    assert g_TP.dtype == dtype and g_TP[0, 0] == g_TP[0, 1] and g_TP[1, 0] == g_TP[1, 2], "the example must have ties"
    _, wanted = gradient(z_TP.double(), reference.route_with_losses)
    assert_close("dz", got, wanted, dtype)


def test_keys_that_tie_share_the_gradient_of_the_maximum():
    z_TP = torch.tensor([[1.0, 1.0, 0.5, -2.0], [2.0, 2.0, 2.0, 1.5], [0.0, 3.0, -1.0, 2.5]])
    threshold_H, width_H = torch.tensor([0.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    for spread in SPREADS:
        _, got = gradients_of_all(z_TP, threshold_H, None, width_H, spread=spread)
        _, wanted = gradients_of_all(
            z_TP.double(), threshold_H, None, width_H, spread=spread, route=reference.route_with_losses
        )
        assert_close("dz", got, wanted)


def test_a_step_far_from_the_logits_is_neither_nan_nor_felt():
    z_TP = torch.randn(4, 2 * 5)
    thresholds = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    results, dz_TP = gradients_of_all(z_TP, thresholds, None, torch.ones(2, dtype=torch.float64), spread="firing")
    assert torch.equal(results[-1], torch.tensor([[0.0], [1.0]]).expand(2, 5))
    assert dz_TP.isfinite().all()


def test_no_tokens():
    threshold_H, width_H = head_values(2)
    empty = torch.zeros(0, 2 * 5)
    results, dz_TP = gradients_of_all(empty, threshold_H, None, width_H, spread="firing")
    assert results[0].shape == dz_TP.shape == (0, 10)
    assert all(part.eq(0).all() for part in results)
    assert thresholded_softmax(empty, threshold_H).shape == (0, 10)
    assert all(part.eq(0).all() for part in batch_statistics(torch.zeros(0, 3, 2, 5)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_logits(layout):
    T, H, E = 6, 2, 10
    z_TP = LAYOUTS[layout](T, H * E)
    assert not z_TP.is_contiguous()
    threshold_H, width_H = head_values(H)
    for ours, theirs in zip(
        gradients_of_all(z_TP, threshold_H, None, width_H, spread="firing")[0],
        gradients_of_all(z_TP.contiguous(), threshold_H, None, width_H, spread="firing")[0],
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    upstream = torch.randn(H * E, T).T
    leaf = z_TP.requires_grad_()
    thresholded_softmax(leaf, threshold_H).backward(upstream)
    other = z_TP.detach().double().contiguous().requires_grad_()
    reference.thresholded_softmax(other.view(T, H, E), threshold_H).flatten(1).backward(upstream.double())
    assert_close("dz", leaf.grad, other.grad)
    moments = [batch_statistics(z.unflatten(0, (2, 3)).unflatten(2, (H, E))) for z in (z_TP, z_TP.contiguous())]
    for ours, theirs in zip(*moments, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mask", ["all tokens", "padding", "first tokens padded", "nothing counts"])
@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["centred", "mean 1000 deviations away"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments(dtype, offset, mask, programs):
    B, T, H, E = 3, 27, 3, 6
    z_BTHE = (torch.randn(B, T, H, E) + offset).to(dtype)
    counted_BT = {
        "all tokens": torch.ones(B, T),
        "padding": torch.rand(B, T) > 0.4,
        "first tokens padded": torch.arange(B * T).view(B, T) >= 70,
        "nothing counts": torch.zeros(B, T),
    }[mask].bool()
    z_BTHE[~counted_BT] = 6e4
    z_BTHE[1][~counted_BT[1]] = math.nan
    got = batch_statistics(z_BTHE, None if mask == "all tokens" else counted_BT)
    for name, ours, theirs in zip(got._fields, got, moments(z_BTHE, counted_BT), strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_moments_of_a_mean_so_far_away_that_it_is_rounded(programs):
    z_BTHE = torch.randn(1, 40, 2, 37) + 1e5
    for ours, theirs in zip(batch_statistics(z_BTHE), reference.batch_statistics(z_BTHE.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_a_nan_shows_in_the_moments_of_its_head(programs):
    z_BTHE = torch.randn(1, 40, 2, 5)
    z_BTHE[0, 7, 1, 2] = math.nan
    _, mean_H, m2_H = batch_statistics(z_BTHE)
    assert mean_H.isnan().tolist() == m2_H.isnan().tolist() == [False, True]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_of_any_shape(shape, programs):
    T, H, E = shape
    z_BTHE = torch.randn(1, T, H, E) * 3 - 2
    for ours, theirs in zip(batch_statistics(z_BTHE), reference.batch_statistics(z_BTHE.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_moments_of_tokens_that_differ_a_thousandfold(programs):
    """The first token of a program is far from all others."""
    z_BTHE = torch.randn(1, 150, 1, 512)
    z_BTHE[:, ::64] += 1e3
    for ours, theirs in zip(batch_statistics(z_BTHE), reference.batch_statistics(z_BTHE.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_operators_obey_the_rules_of_custom_operators():
    """Checks schema, fake kernels and autograd with torch's own checks."""
    z_TP = torch.randn(5, 2 * 6, requires_grad=True)
    threshold_H, width_H = head_values(2)
    ops = torch.ops.monet
    for weight_T in (None, weights_of(5, True)):
        for share in range(3):
            arguments = (z_TP, threshold_H, weight_T, width_H, True, share, torch.float32)
            torch.library.opcheck(ops.routing.default, arguments)
    torch.library.opcheck(ops.routing.default, (z_TP, threshold_H, None, None, False, 0, torch.bfloat16))
    dsums = torch.randn(3 * 12 + 2)
    z_TP = z_TP.detach()
    upstream = torch.randn(5, 12)
    torch.library.opcheck(
        ops.routing_backward.default, (z_TP, upstream, threshold_H, None, width_H, dsums, 2, True, torch.float16)
    )
    torch.library.opcheck(
        ops.routing_backward.default, (z_TP.abs(), upstream, threshold_H, None, None, None, 0, False, torch.float32)
    )
    for mask_T in (None, torch.arange(5) % 2 == 0):
        torch.library.opcheck(ops.routing_moments.default, (z_TP, mask_T, 2))


def small_router() -> MonetRouter:
    torch.manual_seed(0)
    config = MonetConfig(
        hidden_size=12, num_attention_heads=2, num_hidden_layers=1, vocab_size=16, moe_experts=6, moe_heads=3,
        moe_dim=2, moe_topk=2, moe_groups=1, moe_decompose="horizontal",
    )  # fmt: skip
    return MonetRouter(config).train()


@pytest.mark.parametrize("target", [None, "routing", "softmax", "firing"])
@pytest.mark.parametrize("padded", [False, True], ids=["all tokens", "padding"])
def test_a_learning_router_traces_whole_and_equals_torch(padded, target, monkeypatch):
    router = small_router()
    x_BTD, upstream = torch.randn(2, 7, 12), torch.randn(2, 7, 3, 6)
    mask_BT = torch.arange(7) >= torch.tensor([0, 3])[:, None] if padded else None
    options = {"with_losses": target is not None, "router_loss": RouterLoss(uniformity_on=target or "routing")}

    def run(routed: Callable) -> list[Tensor]:
        router.zero_grad()
        leaf = x_BTD.clone().requires_grad_()
        out = routed(leaf, mask_BT, **options)
        total = (out.g1_BTHE * upstream).sum() + out.g2_BTHE.square().sum()
        if target is not None:
            total = total + 3 * out.uniformity + 2 * out.ambiguity
        total.backward()
        moments = [part for axis in out.statistics for part in axis]
        metrics = [] if out.metrics is None else [out.metrics.active_per_head, out.metrics.fired_2HE]
        gradients = torch.stack([router.w1.weight.grad, router.w2.weight.grad])
        assert leaf.grad is not None
        return [out.g1_BTHE, out.g2_BTHE, total, leaf.grad, gradients, *moments, *metrics]

    eager = [part.clone() for part in run(router)]
    traced = run(torch.compile(router, fullgraph=True, backend="aot_eager"))
    monkeypatch.setenv("MONET_KERNELS", "torch")
    for got, compiled, wanted in zip(eager, traced, run(router), strict=True):
        assert_close("eager", got, wanted, torch.float32)
        assert_close("traced", compiled, wanted, torch.float32)


@pytest.mark.parametrize("target", [None, "routing", "firing"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_hook_on_a_router_changes_no_bit(dtype, target):
    """A hook asks for float32 probabilities; gates and gradients equal those of a router without a hook."""
    router = small_router()
    for linear in (router.w1, router.w2):
        torch.nn.init.normal_(linear.weight)
    router.to(dtype)
    x_BTD, upstream = torch.randn(2, 7, 12).to(dtype), torch.randn(2, 7, 3, 6).to(dtype)
    options = {"with_losses": target is not None, "router_loss": RouterLoss(uniformity_on=target or "routing")}

    def run() -> list[Tensor]:
        leaf = x_BTD.clone().requires_grad_()
        out = router.route(leaf, **options)
        total = (out.gates[0] * upstream).sum() + (out.gates[1] * upstream).square().sum()
        if target is not None:
            total = total + 3 * out.uniformity + 2 * out.ambiguity
        return [*out.gates, total, *torch.autograd.grad(total, [leaf, router.w1.weight, router.w2.weight])]

    wanted = run()
    router.register_forward_hook(lambda *_: None)
    assert [n for n, (got, want) in enumerate(zip(run(), wanted, strict=True)) if not torch.equal(got, want)] == []
