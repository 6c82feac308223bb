"""Training steps: every parameter learns, in every precision, and the loss falls."""

from __future__ import annotations

import pytest
import torch

from monet import ExpertMask
from monet.model.losses import RouterLoss
from tests.kernels.explicit import set_sizes
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import relative_rms

LOSS = RouterLoss(0.01, 0.01, "routing")


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient(form):
    """Distributed training requires that every parameter takes part in each step."""
    model = tiny_model(form, attention_bias=True).train()
    model(tokens(4, 16), labels=tokens(4, 16), router_loss=LOSS).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_autocast(form, dtype):
    model = tiny_model(form).train()
    with torch.autocast("cpu", dtype):
        out = model(tokens(), labels=tokens(), router_loss=LOSS, output_router_probs=True)
    assert out.logits.dtype == dtype and out.loss.dtype == torch.float32
    assert out.router_probs[0][0].dtype == torch.float32
    torch.testing.assert_close(out.router_probs[0][0].sum(-1), torch.ones(2, 9, 3))
    means = torch.stack([g.flatten(0, 1).mean(0) for pair in out.router_probs if pair for g in pair])
    torch.testing.assert_close(out.uniformity_loss, -means.clamp(min=1e-9).log().mean(), msg="losses stay float32")
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
    assert model.routers()[0].norm1.running_mean.dtype == torch.float32
    exact = tiny_model(form).train()(tokens(), labels=tokens(), router_loss=LOSS)
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_cast_model_trains(form, dtype):
    model = tiny_model(form).to(dtype).train()
    out = model(tokens(), labels=tokens(), router_loss=LOSS)
    assert out.logits.dtype == dtype
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == dtype and parameter.grad.isfinite().all(), name
    norm = model.routers()[0].norm1
    assert norm.running_mean.dtype == torch.float32 and norm.num_batches_tracked == 1001


def test_float32_gradients_agree_with_float64():
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model = tiny_model().to(dtype).train()
        model(tokens(), labels=tokens(), router_loss=LOSS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert relative_rms(gradient, gradients[1][name]) < 1e-4, name


@pytest.mark.parametrize(("form", "frozen"), [("vertical", False), ("horizontal", True)])
def test_the_loss_falls(form, frozen):
    model = tiny_model(form).train()
    if frozen:
        model.freeze_router()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        out = model(tokens(), labels=tokens(), router_loss=LOSS)
        out.loss.backward()
        optimizer.step()
        losses.append(out.lm_loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_accumulated_micro_batches_equal_one_batch():
    """With the divisor given, two halves sum to the whole. The router is frozen: its statistics depend on the batch."""
    whole, halves = tiny_model().train(), tiny_model().train()
    whole.freeze_router()
    halves.freeze_router()
    ids = tokens(4)
    labels = ids.clone()
    labels[0, :5] = -100
    whole(ids, labels=labels).loss.backward()
    count = (labels[:, 1:] != -100).sum()
    for part in (slice(0, 2), slice(2, 4)):
        halves(ids[part], labels=labels[part], num_items_in_batch=count).loss.backward()
    for (name, ours), (_, theirs) in zip(halves.named_parameters(), whole.named_parameters(), strict=True):
        if theirs.grad is not None:
            assert relative_rms(ours.grad, theirs.grad) < 1e-5, name


def test_a_learning_router_follows_its_batch_not_its_past():
    """In training the forward does not use the running statistics."""
    model = tiny_model().train()
    first = model(tokens()).logits
    for router in model.routers():
        router.norm1.running_mean.fill_(100.0)
    assert torch.equal(model(tokens()).logits, first)
    assert not torch.equal(model.eval()(tokens()).logits, first)


def test_a_nan_reaches_the_loss():
    """Routing must not hide a broken weight: training stops on a loss that is not finite."""
    for name in ("model.layers.1.moe.v12.weight", "model.layers.2.router.w1.weight", "lm_head.weight"):
        model = tiny_model().train()
        with torch.no_grad():
            dict(model.named_parameters())[name][0] = float("nan")
        assert model(tokens(), labels=tokens(), router_loss=LOSS).loss.isnan(), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_checkpointing_under_autocast(form, masked, monkeypatch):
    """With float32 weights and bfloat16 arithmetic, recomputed layers give the gradients of layers computed once."""
    set_sizes(monkeypatch)
    gradients = []
    for saving in (False, True):
        model = tiny_model(form).train()
        if saving:
            model.gradient_checkpointing_enable()
        mask = ExpertMask.random(model.config, 30, seed=0) if masked else None
        gates = []
        hook = model.model.layers[0].moe.register_forward_pre_hook(lambda _, args, seen=gates: seen.append(args[1]))
        with torch.autocast("cpu", torch.bfloat16):
            out = model(tokens(), labels=tokens(), router_loss=RouterLoss(), expert_mask=mask, use_cache=False)
        out.loss.backward()
        hook.remove()
        assert [gate.dtype for gate in gates] == [torch.bfloat16] * (1 + saving)
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, wanted in gradients[0].items():
        assert wanted.dtype == torch.float32 and wanted.isfinite().all(), name
        assert torch.equal(gradients[1][name], wanted), name
