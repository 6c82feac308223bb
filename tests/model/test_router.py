"""The router compared with an independent BatchNorm, and the updates of its running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monet import MonetForCausalLM
from monet.model.losses import RouterLoss
from monet.model.router import MonetRouter
from tests.kernels.explicit import set_sizes
from tests.model.tiny import FORMS, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close


class BatchNormRouter(nn.Module):
    """The specification taken literally: BatchNorm1d over heads, min(max, quantile) on normalised logits."""

    def __init__(self, router: MonetRouter, quantile: float) -> None:
        super().__init__()
        self.linears = [copy.deepcopy(linear).requires_grad_() for linear in (router.w1, router.w2)]
        self.norms = nn.ModuleList(nn.BatchNorm1d(router.num_heads, affine=False) for _ in range(2))
        for ours, theirs in zip(self.norms, (router.norm1, router.norm2), strict=True):
            ours.load_state_dict(theirs.state_dict())
        self.shape, self.quantile = (router.num_heads, router.num_keys), quantile

    def forward(self, x_BTD: Tensor) -> list[Tensor]:
        gs = []
        for linear, norm in zip(self.linears, self.norms, strict=True):
            z_BTHE = linear(x_BTD).unflatten(-1, self.shape)
            n_BTHE = norm(z_BTHE.transpose(2, 3).flatten(0, 2)).view(*z_BTHE.transpose(2, 3).shape).transpose(2, 3)
            keep_BTHE = n_BTHE >= n_BTHE.amax(-1, keepdim=True).clamp(max=self.quantile)
            gs.append(torch.where(keep_BTHE, z_BTHE, -1e10).softmax(-1))
        return gs


def router_with_statistics(**changes) -> MonetRouter:
    torch.manual_seed(3)
    router = MonetRouter(tiny_config(**changes))
    for norm in (router.norm1, router.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return router


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("topk", [1, 2, 3, 5, 6])
def test_equals_batch_norm(topk, training):
    router = router_with_statistics(moe_topk=topk).train(training)
    quantile = torch.special.ndtri(torch.tensor(1 - topk / 6, dtype=torch.float64)).item()
    reference = BatchNormRouter(router, quantile).train(training)
    x_BTD = torch.randn(4, 7, 24, requires_grad=True)
    for _ in range(3):
        output = router(x_BTD)
        router.update_statistics(output)
        wanted = reference(x_BTD)
        upstream = torch.randn_like(wanted[0])
        for got, g in zip(output[:2], wanted, strict=True):
            assert torch.equal(got > 0, g > 0)
            assert_close("probabilities", got, g)
        ours = torch.autograd.grad(output.g1_BTHE, [router.w1.weight, x_BTD], upstream)
        theirs = torch.autograd.grad(wanted[0], [reference.linears[0].weight, x_BTD], upstream)
        for name, got, grad in zip(("w1", "x"), ours, theirs, strict=True):
            assert_close(f"gradient of {name}", got, grad)
        for norm, other in zip((router.norm1, router.norm2), reference.norms, strict=True):
            assert_close("running mean", norm.running_mean, other.running_mean)
            assert_close("running variance, unbiased", norm.running_var, other.running_var)
            assert norm.num_batches_tracked == other.num_batches_tracked


def test_batch_norm_variance_is_unbiased_at_a_size_where_it_matters():
    """One token: n = E logits a head, so the factor n/(n-1) is 1.2."""
    router = router_with_statistics().train()
    x_BTD = torch.randn(1, 1, 24)
    before = router.norm1.running_var.clone()
    router.update_statistics(router(x_BTD))
    z_HE = router.w1(x_BTD).view(3, 6)
    assert_close("variance", router.norm1.running_var, 0.9 * before + 0.1 * z_HE.var(-1).detach())


def test_rows_sum_to_one_and_are_float32_for_any_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        router = router_with_statistics().to(dtype)
        x_BTD = torch.randn(2, 5, 24, dtype=dtype)
        lean = router(x_BTD)
        exact = router(x_BTD, float32_probs=True)
        for g_BTHE, gate_BTHE, lean_BTHE in zip(exact[:2], exact.gates, lean[:2], strict=True):
            assert g_BTHE.dtype == torch.float32
            assert gate_BTHE.dtype == lean_BTHE.dtype == dtype
            assert torch.equal(gate_BTHE, lean_BTHE)
            torch.testing.assert_close(g_BTHE.sum(-1), torch.ones(2, 5, 3))
            assert (g_BTHE == 0).any() and (g_BTHE > 0).any(-1).all()


def test_evaluation_treats_every_token_alone():
    router = router_with_statistics().eval()
    x_BTD = torch.randn(3, 5, 24)
    alone = torch.stack([router(x_BTD[b : b + 1, t : t + 1]).g1_BTHE[0, 0] for b in range(3) for t in range(5)])
    assert_close("one by one", alone.view(3, 5, 3, 6), router(x_BTD).g1_BTHE)


@pytest.mark.parametrize("target", [None, "routing", "softmax", "firing"])
def test_padding_enters_neither_statistics_nor_losses(target):
    router = router_with_statistics().train()
    x_BTD = torch.randn(3, 8, 24)
    real_BT = torch.arange(8) >= torch.tensor([0, 3, 6])[:, None]
    x_BTD[~real_BT] = 50.0
    options = {"with_losses": True, "router_loss": None if target is None else RouterLoss(uniformity_on=target)}
    padded = router(x_BTD, real_BT, **options)
    packed = router(x_BTD[real_BT][None], **options)
    assert_close("g1", padded.g1_BTHE[real_BT], packed.g1_BTHE[0])
    for got, wanted in zip(padded.statistics, packed.statistics, strict=True):
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for name in ("uniformity", "ambiguity"):
        torch.testing.assert_close(getattr(padded, name), getattr(packed, name))
    for got, wanted in zip(padded.metrics, packed.metrics, strict=True):
        torch.testing.assert_close(got, wanted)


def test_metrics_count_what_fired():
    router = router_with_statistics()
    output = router(torch.randn(2, 5, 24), with_losses=True)
    fired_2HE = torch.stack([(g > 0).sum((0, 1)) for g in output[:2]])
    assert torch.equal(output.metrics.fired_2HE, fired_2HE)
    assert output.metrics.fired_2HE.dtype == torch.int64
    active = torch.stack([(g > 0).sum(-1).float().mean() for g in output[:2]]).mean()
    torch.testing.assert_close(output.metrics.active_per_head, active)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "to", "float"])
def test_statistics_stay_float32_and_unrounded(cast):
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    model = model.to(torch.bfloat16) if cast == "to" else getattr(model, cast)()
    after = {name: buffer for name, buffer in model.named_buffers() if "running" in name}
    assert len(after) == 8
    for name, buffer in after.items():
        assert buffer.dtype == torch.float32, name
        assert torch.equal(buffer, before[name]), name
    model(tokens())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_statistics_stay_float32_when_loaded_in_another_dtype(tmp_path, dtype):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = MonetForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.model.layers[0].router.w1.weight.dtype == dtype
    for (name, ours), (_, theirs) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        if "running" in name:
            assert ours.dtype == torch.float32 and torch.equal(ours, theirs), name
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    reloaded = MonetForCausalLM.from_pretrained(again, dtype=torch.float32)
    for (name, ours), (_, theirs) in zip(reloaded.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def statistics_of(model: MonetForCausalLM) -> list[Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if ".router." in name]


def test_a_training_forward_moves_every_statistic_once():
    model = tiny_model().train()
    before = statistics_of(model)
    model(tokens())
    after = statistics_of(model)
    assert len(after) == 12 and not any(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))
    assert model.routers()[0].norm1.num_batches_tracked == 1001
    assert model.routers()[1].norm2.num_batches_tracked == 1001


def test_evaluation_and_no_grad_evaluation_leave_them():
    model = tiny_model()
    before = statistics_of(model)
    model(tokens(), labels=tokens())
    model.generate(tokens(), max_new_tokens=2)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(statistics_of(model), before, strict=True))


def test_a_frozen_router_uses_and_keeps_its_running_statistics_in_training():
    model = tiny_model().train()
    model.freeze_router()
    before = statistics_of(model)
    got = model(tokens(), output_router_probs=True, labels=tokens())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(statistics_of(model), before, strict=True))
    wanted = model.eval()(tokens(), output_router_probs=True)
    assert torch.equal(got.router_probs[0][0], wanted.router_probs[0][0])
    assert torch.equal(got.logits, wanted.logits)
    got.loss.backward()
    assert all(parameter.grad is None for router in model.routers() for parameter in router.parameters())
    assert model.model.embed_tokens.weight.grad.isfinite().all()


def test_gradient_still_flows_through_a_frozen_router_into_the_states():
    router = router_with_statistics().eval().requires_grad_(False)
    x_BTD = torch.randn(2, 5, 24, requires_grad=True)
    router(x_BTD).g1_BTHE.square().sum().backward()
    assert x_BTD.grad.abs().max() > 0


@pytest.mark.parametrize("lean_from", [0, 1 << 60], ids=["lean", "small"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [False, True], ids=["as asked", "asked for re-entrant"])
@pytest.mark.parametrize("mode", ["learning", "frozen", "masked"])
def test_activation_checkpointing(form, mode, reentrant, lean_from, monkeypatch):
    """Gradients are the same, and the statistics change once although the layer runs twice."""
    from monet import ExpertMask

    set_sizes(monkeypatch, lean_from=lean_from)
    plain = tiny_model(form).train()
    if mode == "frozen":
        plain.freeze_router()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert saving.is_gradient_checkpointing
    mask = ExpertMask.random(plain.config, 30, seed=0) if mode == "masked" else None
    runs = {"plain": 0, "saving": 0}
    for name, model in (("plain", plain), ("saving", saving)):
        hook = model.model.layers[0].moe.register_forward_pre_hook(lambda *_, n=name: runs.update({n: runs[n] + 1}))
        out = model(
            tokens(), labels=tokens(), router_loss=RouterLoss(0.1, 0.1, "firing"), expert_mask=mask, use_cache=False
        )
        out.loss.backward()
        hook.remove()
    assert runs == {"plain": 1, "saving": 2}, "nothing was recomputed, so nothing was tested"
    for (name, ours), (_, theirs) in zip(saving.named_parameters(), plain.named_parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert torch.equal(ours.grad, theirs.grad), name
    assert all(torch.equal(a, b) for a, b in zip(statistics_of(saving), statistics_of(plain), strict=True))
    assert saving.routers()[0].norm1.num_batches_tracked == (1000 if mode == "frozen" else 1001)


def test_router_reads_the_state_it_should():
    """x is the post-attention norm of the group's first layer; the next layer of the group reuses its routing."""
    model = tiny_model()
    seen = {}
    for index in (0, 1):
        layer = model.model.layers[index]
        layer.post_attention_layernorm.register_forward_hook(lambda m, i, out, n=index: seen.update({n: out}))
        layer.moe.register_forward_pre_hook(lambda m, args, n=index: seen.update({f"g{n}": args[1]}))
    model(tokens())
    wanted = model.model.layers[0].router(seen[0]).g1_BTHE
    assert torch.equal(seen["g0"], wanted) and torch.equal(seen["g1"], wanted)
    assert not torch.equal(seen[0], seen[1])


def test_threshold_follows_the_specification_in_a_whole_model():
    model = tiny_model()
    states = []
    model.model.layers[2].post_attention_layernorm.register_forward_hook(lambda m, i, out: states.append(out))
    got = model(tokens(), output_router_probs=True).router_probs[2]
    router = model.model.layers[2].router
    for linear, norm, g_BTHE in ((router.w1, router.norm1, got[0]), (router.w2, router.norm2, got[1])):
        z_BTHE = linear(states[0]).unflatten(-1, (3, 6))
        n_BTHE = (z_BTHE - norm.running_mean[:, None]) / (norm.running_var[:, None] + 1e-5).sqrt()
        active = n_BTHE >= n_BTHE.amax(-1, keepdim=True).clamp(max=0.430727)  # quantile of 1 - 2/6
        assert torch.equal(g_BTHE > 0, active)
        assert_close("g", g_BTHE, F.softmax(z_BTHE.masked_fill(~active, -1e10), -1))
