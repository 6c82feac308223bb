"""Routing: invariants of the thresholded softmax, and batch statistics that merge exactly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from monet.kernels.routing import op as routing
from monet.kernels.routing import reference
from monet.kernels.routing.op import thresholded_softmax
from monet.kernels.routing.reference import BatchStatistics, batch_statistics, merge_statistics, normal_quantile
from tests.kernels.cases import (
    BAD_ROWS,
    DTYPES,
    LAYOUTS,
    LOGITS,
    THRESHOLDS,
    moments,
    routed_from_the_definition,
    with_a_bad_row,
)
from tests.tolerances import relative_rms

T, H, E = 9, 3, 6
FLOATS = [torch.float64, *DTYPES]


def route(z_THE: torch.Tensor, threshold_H: torch.Tensor, **options) -> torch.Tensor:
    return thresholded_softmax(z_THE.flatten(1), threshold_H, **options).view(z_THE.shape)


@pytest.mark.parametrize("span", [None, -1.0], ids=["as chosen", "general comparison"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("logits", LOGITS)
def test_invariants_and_definition(logits, threshold, dtype, span, monkeypatch):
    """Both comparisons with the threshold: the fast one for logits near it, and the general one."""
    if span is not None:
        monkeypatch.setattr(routing, "SAFE_SPAN", span)
    z_THE, threshold_H = LOGITS[logits](T, H, E).to(dtype), torch.tensor(THRESHOLDS[threshold], dtype=torch.float64)
    before = z_THE.clone()
    g_THE = route(z_THE, threshold_H)
    assert torch.equal(z_THE, before), "the argument was overwritten unasked"
    assert g_THE.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = routed_from_the_definition(z_THE, threshold_H.to(g_THE.dtype))
    normal = torch.finfo(g_THE.dtype).tiny
    assert torch.equal(g_THE > 0, wanted > normal), "active sets differ"
    assert g_THE.ge(0).all()
    assert (g_THE > 0).any(-1).all(), "at least one key is active"
    row_max = z_THE == z_THE.amax(-1, keepdim=True)
    assert (g_THE > 0)[row_max].all(), "the maximum and its ties are active"
    assert torch.equal(row_max & (g_THE == g_THE.amax(-1, keepdim=True)), row_max)
    torch.testing.assert_close(g_THE.sum(-1), torch.ones_like(g_THE[..., 0]), rtol=0, atol=1e-6)
    assert relative_rms(g_THE, wanted) < 2e-6
    assert relative_rms(reference.thresholded_softmax(z_THE[None], threshold_H)[0], wanted) < 2e-6


@pytest.mark.parametrize("keys", [512, 1000, 4096], ids=lambda keys: f"E{keys}")
def test_long_rows(keys):
    """The softmax is computed in place, and long rows are read several times."""
    z_THE = 3 * torch.randn(5, 2, keys)
    threshold_H = torch.tensor([3.0, 100.0], dtype=torch.float64)
    g_THE, wanted = route(z_THE, threshold_H), routed_from_the_definition(z_THE, threshold_H)
    assert torch.equal(g_THE > 0, wanted > 0)
    assert relative_rms(g_THE, wanted) < 2e-6


def test_all_keys_kept_is_a_plain_softmax():
    z_THE = torch.randn(T, H, E)
    everything = reference.raw_threshold(torch.randn(H), torch.rand(H), normal_quantile(E, E), 1e-5)
    torch.testing.assert_close(route(z_THE, everything), z_THE.softmax(-1))


def test_overwriting_gives_the_same_and_reuses_the_memory():
    z_THE, threshold_H = torch.randn(T, H, E), torch.zeros(H, dtype=torch.float64)
    wanted = route(z_THE, threshold_H)
    z_TP = z_THE.flatten(1).clone()
    g_TP = thresholded_softmax(z_TP, threshold_H, overwrite=True)
    assert torch.equal(g_TP.view(T, H, E), wanted)
    assert g_TP.data_ptr() == z_TP.data_ptr()


def test_permuting_keys_permutes_the_result():
    z_THE, threshold_H = torch.randn(T, H, E), torch.tensor([0.5, 0.0, 9.0], dtype=torch.float64)
    order = torch.randperm(E)
    torch.testing.assert_close(route(z_THE[..., order], threshold_H), route(z_THE, threshold_H)[..., order])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_is_that_of_a_softmax_on_a_fixed_support(dtype, overwrite):
    z_THE, threshold_H = (2 * torch.randn(T, H, E)).to(dtype), torch.tensor([0.5, 0.0, 9.0], dtype=torch.float64)
    leaf = z_THE.clone().requires_grad_()
    g_THE = route(leaf * 1.0, threshold_H, overwrite=overwrite)
    upstream = torch.randn_like(g_THE)
    (got,) = torch.autograd.grad(g_THE, leaf, upstream)
    support = g_THE > 0
    other = z_THE.to(g_THE.dtype).requires_grad_()
    (wanted,) = torch.autograd.grad(other.masked_fill(~support, -math.inf).softmax(-1), other, upstream)
    assert got.dtype == dtype
    assert got[~support].eq(0).all()
    assert relative_rms(got, wanted) < {torch.float16: 1e-3, torch.bfloat16: 5e-3}.get(dtype, 1e-6)
    alone = support.sum(-1) == 1
    assert alone.any() and got[alone].eq(0).all(), "a head with one active key has no gradient"


def test_no_gradient_through_the_threshold():
    z_TP = torch.randn(T, H * E, requires_grad=True)
    threshold_H = torch.zeros(H, dtype=torch.float64, requires_grad=True)
    thresholded_softmax(z_TP, threshold_H).square().sum().backward()
    assert z_TP.grad is not None and threshold_H.grad is None


def test_gradcheck():
    z_TP = (2 * torch.randn(3, 2 * 4, dtype=torch.float64)).requires_grad_()
    threshold_H = torch.tensor([0.4, 9.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: thresholded_softmax(z, threshold_H), z_TP)


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_row_that_is_not_finite_shows_and_harms_no_other(fault):
    g_THE = route(with_a_bad_row(torch.randn(T, H, E), fault), torch.zeros(H, dtype=torch.float64))
    assert g_THE[3, 1].isnan().all() if fault == "a NaN" else g_THE[3, 1].isnan().any()
    g_THE[3, 1] = 0
    assert g_THE.isfinite().all()


def test_no_tokens_and_one_key():
    empty = torch.zeros(0, H * E, requires_grad=True)
    g_TP = thresholded_softmax(empty, torch.zeros(H, dtype=torch.float64))
    assert g_TP.shape == (0, H * E)
    g_TP.sum().backward()
    one_key = thresholded_softmax(torch.randn(T, H), torch.zeros(H, dtype=torch.float64))
    assert torch.equal(one_key, torch.ones(T, H))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_logits(layout):
    z_TP, threshold_H = LAYOUTS[layout](T, H * E), torch.zeros(H, dtype=torch.float64)
    assert not z_TP.is_contiguous()
    wanted = thresholded_softmax(z_TP.contiguous(), threshold_H)
    assert torch.equal(thresholded_softmax(z_TP, threshold_H), wanted)


@pytest.mark.parametrize(
    ("topk", "keys", "wanted"), [(32, 512, 1.534121), (4, 16, 0.674490), (8, 16, 0.0), (1, 2, 0.0)]
)
def test_quantile(topk, keys, wanted):
    assert normal_quantile(topk, keys) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("topk", [1, 8, 32])
def test_about_topk_keys_survive_for_normal_logits(topk):
    keys = 128
    z_THE = torch.randn(2000, 1, keys)
    threshold_H = reference.raw_threshold(torch.zeros(1), torch.ones(1), normal_quantile(topk, keys), 1e-5)
    active = (route(z_THE, threshold_H) > 0).sum(-1).float().mean().item()
    # at topk = 1 the rule "at least one" adds the rows that would be empty: e^-1 of them
    assert active == pytest.approx(topk + (math.exp(-1) if topk == 1 else 0), rel=0.05)


@pytest.mark.parametrize("offset", [0.0, 1e3], ids=["centred", "mean 1000 deviations away"])
@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "padding"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_statistics_are_exact_and_skip_padding(dtype, masked, offset):
    z_BTHE = (torch.randn(3, 8, H, E) + offset).to(dtype)
    counted_BT = torch.rand(3, 8) > 0.4 if masked else torch.ones(3, 8, dtype=torch.bool)
    z_BTHE[~counted_BT] = 1e4
    got, wanted = batch_statistics(z_BTHE, counted_BT if masked else None), moments(z_BTHE, counted_BT)
    for name, ours, theirs in zip(BatchStatistics._fields, got, wanted, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-5 if offset else 1e-6, atol=1e-6, msg=name)


def test_statistics_merge_exactly():
    parts = [torch.randn(2, 5, H, E, dtype=torch.float64) * scale + scale for scale in (1.0, 10.0, 0.1)]
    merged = batch_statistics(parts[0])
    for part in parts[1:]:
        merged = merge_statistics(merged, batch_statistics(part))
    for got, wanted in zip(merged, batch_statistics(torch.cat(parts)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_an_empty_part_changes_nothing():
    z_BTHE = torch.randn(2, 5, H, E)
    nothing = batch_statistics(z_BTHE, torch.zeros(2, 5, dtype=torch.bool))
    assert nothing.count == 0 and nothing.mean_H.eq(0).all() and nothing.m2_H.eq(0).all()
    something = batch_statistics(z_BTHE)
    for merged in (merge_statistics(nothing, something), merge_statistics(something, nothing)):
        for got, wanted in zip(merged, something, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-15, atol=0)
    for part in merge_statistics(nothing, nothing):
        assert part.eq(0).all()


def test_statistics_carry_no_gradient():
    z_BTHE = torch.randn(2, 5, H, E, requires_grad=True)
    assert not any(part.requires_grad for part in batch_statistics(z_BTHE * 2))


def test_threshold_on_raw_logits_is_the_one_on_normalised_logits():
    z_THE = torch.randn(200, H, E) * 3 + 1
    mean_H, var_H, quantile = torch.randn(H), torch.rand(H) + 0.5, normal_quantile(2, E)
    n_THE = F.batch_norm(z_THE.transpose(1, 2).reshape(-1, H), mean_H, var_H, eps=1e-5)
    n_THE = n_THE.view(200, E, H).transpose(1, 2)
    keep_THE = n_THE >= n_THE.amax(-1, keepdim=True).clamp(max=quantile)
    threshold_H = reference.raw_threshold(mean_H, var_H, quantile, 1e-5)
    assert torch.equal(route(z_THE, threshold_H) > 0, keep_THE)
