"""Known values of the losses; the parts of the model's loss add up."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from monet.errors import ConfigError
from monet.model.losses import (
    RouterLoss,
    ambiguity_loss,
    loss_fields,
    next_token_loss,
    projected_loss,
    projects_in_pieces,
    uniformity_loss,
)
from monet.model.router import MonetRouter
from tests.model.tiny import FORMS, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close


def test_uniformity_of_equal_use_is_log_E():
    assert uniformity_loss(torch.full((4, 512), 1 / 512)).item() == pytest.approx(math.log(512), abs=1e-5)


def test_uniformity_is_larger_for_any_other_use():
    mean_XE = torch.rand(4, 16).softmax(-1)
    assert uniformity_loss(mean_XE) > math.log(16)
    by_hand = -sum(math.log(p) for row in mean_XE.tolist() for p in row) / (4 * 16)
    assert uniformity_loss(mean_XE).item() == pytest.approx(by_hand, rel=1e-6)


def test_a_dead_key_has_a_finite_loss_and_gradient():
    mean_XE = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    loss = uniformity_loss(mean_XE)
    loss.backward()
    assert loss.isfinite() and loss > -math.log(0.5)
    assert mean_XE.grad.isfinite().all()


def test_ambiguity():
    assert ambiguity_loss(torch.ones(6)).item() == 0.0
    assert ambiguity_loss(torch.full((6,), 1 / 16)).item() == pytest.approx(1 - 1 / 16)
    assert ambiguity_loss(torch.tensor([0.5, 1.0])).item() == pytest.approx(0.25)


def test_router_losses_follow_the_specification():
    torch.manual_seed(1)
    router = MonetRouter(tiny_config()).train()
    output = router(torch.randn(2, 9, 24), with_losses=True)
    gs = [g.flatten(0, 1) for g in output[:2]]
    uniformity = -sum(g.mean(0).clamp(min=1e-9).log().sum() for g in gs) / (2 * 3 * 6)
    ambiguity = sum((1 - g.amax(-1)).mean(0).sum() for g in gs) / (2 * 3)
    torch.testing.assert_close(output.uniformity, uniformity)
    torch.testing.assert_close(output.ambiguity, ambiguity)


def test_alternative_targets_of_uniformity():
    torch.manual_seed(1)
    router = MonetRouter(tiny_config()).train()
    x_BTD = torch.randn(2, 9, 24)
    z = [linear(x_BTD).unflatten(-1, (3, 6)).flatten(0, 1) for linear in (router.w1, router.w2)]
    softmax = -torch.stack([logits.softmax(-1).mean(0).log() for logits in z]).mean()
    output = router(x_BTD, with_losses=True, router_loss=RouterLoss(uniformity_on="softmax"))
    torch.testing.assert_close(output.uniformity, softmax)
    paper = router(x_BTD, with_losses=True)
    torch.testing.assert_close(output.metrics.uniformity, paper.uniformity.detach(), msg="the paper's loss is reported")
    assert torch.equal(output.g1_BTHE, paper.g1_BTHE), "the target does not change the routing"


@pytest.mark.parametrize(("target", "reached"), [("routing", False), ("softmax", True), ("firing", True)])
def test_which_targets_reach_a_key_that_never_fires(target, reached):
    torch.manual_seed(1)
    router = MonetRouter(tiny_config()).train()
    x_BTD = torch.randn(4, 9, 24).abs()
    with torch.no_grad():
        router.w1.weight.view(3, 6, 24)[1, 2] = -1.0
    output = router(x_BTD, with_losses=True, router_loss=RouterLoss(uniformity_on=target))
    assert output.metrics.fired_2HE[0, 1, 2] == 0
    output.uniformity.backward()
    gradient = router.w1.weight.grad.view(3, 6, 24)[1, 2]
    assert gradient.isfinite().all()
    assert bool(gradient.abs().max() > 0) == reached


def test_next_token_loss():
    logits_BTV, labels_BT = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels_BT[0, :2] = -100
    wanted = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=-100)
    torch.testing.assert_close(next_token_loss(logits_BTV, labels_BT), wanted)
    torch.testing.assert_close(next_token_loss(logits_BTV, labels_BT, num_items=16), wanted * 8 / 16)
    assert next_token_loss(torch.zeros(1, 3, 7), torch.ones(1, 3, dtype=torch.long)).item() == pytest.approx(
        math.log(7)
    )
    ignored = torch.full((2, 5), -100)
    leaf = logits_BTV.clone().requires_grad_()
    nothing = next_token_loss(leaf, ignored)
    nothing.backward()
    assert nothing.item() == 0.0 and leaf.grad.eq(0).all()
    assert next_token_loss(logits_BTV.bfloat16(), labels_BT).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uniformity_weight": -1.0}, "uniformity_weight=-1.0: must be a finite number of at least 0"),
        ({"ambiguity_weight": math.nan}, "ambiguity_weight=nan"),
        ({"ambiguity_weight": math.inf}, "ambiguity_weight=inf"),
        ({"uniformity_on": "softmx"}, "uniformity_on='softmx': must be 'routing', 'softmax' or 'firing'"),
        ({"firing_width": 0.0}, "firing_width=0.0: must be a positive number"),
    ],
)
def test_bad_weights(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RouterLoss(**arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True])
def test_the_pieces_add_up(form, training):
    model = tiny_model(form).train(training)
    out = model(tokens(), labels=tokens(), router_loss=RouterLoss(0.3, 0.7, "routing"))
    total = out.lm_loss + 0.3 * out.uniformity_loss + 0.7 * out.ambiguity_loss
    torch.testing.assert_close(out.loss, total, rtol=0, atol=0)
    wanted = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten())
    torch.testing.assert_close(out.lm_loss, wanted)
    torch.testing.assert_close(
        out.uniformity_loss.detach(), torch.stack([metrics.uniformity for metrics in out.router_metrics]).mean()
    )
    torch.testing.assert_close(
        out.ambiguity_loss.detach(), torch.stack([metrics.ambiguity for metrics in out.router_metrics]).mean()
    )
    assert len(out.router_metrics) == 2
    assert not any(part.requires_grad for metrics in out.router_metrics for part in metrics)


def test_without_router_loss_the_loss_is_the_next_token_loss():
    out = tiny_model()(tokens(), labels=tokens())
    assert torch.equal(out.loss, out.lm_loss)
    assert out.uniformity_loss is not None and out.ambiguity_loss is not None
    without = tiny_model()(tokens())
    assert without.loss is None and without.lm_loss is None and without.router_metrics is None


def test_shifted_labels_are_the_same_as_labels():
    model, window = tiny_model(), tokens(T=10)
    out = model(window[:, :-1], shift_labels=window[:, 1:])
    labels = window.clone()
    wanted = model(window, labels=labels)
    torch.testing.assert_close(out.lm_loss, wanted.lm_loss)
    labels[:, :4] = -100
    shifted = window[:, 1:].clone()
    shifted[:, :3] = -100
    torch.testing.assert_close(
        model(window[:, :-1], shift_labels=shifted).lm_loss, model(window, labels=labels).lm_loss
    )  # fmt: skip


@pytest.mark.parametrize("target", ["routing", "softmax", "firing"])
def test_one_token_and_nothing_but_padding_stay_finite(target):
    model = tiny_model().train()
    loss = RouterLoss(0.1, 0.1, target)
    one = tokens(1, 1)
    cases = [(one, None, one), (tokens(), torch.zeros(2, 9, dtype=torch.long), torch.full((2, 9), -100))]
    for ids, attention_mask, labels in cases:
        before = [buffer.clone() for buffer in model.buffers()]
        model.zero_grad()
        out = model(ids, attention_mask=attention_mask, labels=labels, router_loss=loss)
        out.loss.backward()
        assert out.loss.isfinite() and out.lm_loss == 0
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        unchanged = all(torch.equal(ours, theirs) for ours, theirs in zip(model.buffers(), before, strict=True))
        assert unchanged == (attention_mask is not None), "if all tokens are padding, no statistic changes"


needs_operator = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy"
)


@needs_operator
@pytest.mark.parametrize("num_items", [None, 5])
def test_the_loss_in_pieces_is_the_loss_of_the_logits(num_items):
    head = torch.nn.Linear(24, 300, bias=False)
    states_BTD, labels_BT = torch.randn(3, 50, 24), torch.randint(0, 300, (3, 50))
    labels_BT[0, :20] = -100
    assert projects_in_pieces(states_BTD, head)
    results = []
    for run in (
        lambda x: next_token_loss(head(x), labels_BT, num_items),
        lambda x: projected_loss(x, head.weight, labels_BT, num_items),
    ):
        leaf = states_BTD.clone().requires_grad_()
        loss = run(leaf)
        results.append((loss.detach(), *torch.autograd.grad(loss, (leaf, head.weight))))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole)


@needs_operator
def test_pieces_are_for_plain_heads_on_the_cpu():
    states_BTD, head = torch.randn(1, 4, 8), torch.nn.Linear(8, 16, bias=False)
    assert projects_in_pieces(states_BTD, head)
    assert not projects_in_pieces(states_BTD.bfloat16(), head)
    assert not projects_in_pieces(states_BTD.to("meta"), head)
    assert not projects_in_pieces(states_BTD, torch.nn.Linear(8, 16))
    assert not projects_in_pieces(states_BTD, torch.nn.Sequential(head))
    with torch.autocast("cpu", torch.bfloat16):
        assert not projects_in_pieces(states_BTD, head)
    for watch in (head.register_forward_hook, head.register_full_backward_hook):
        hook = watch(lambda *_: None)
        assert not projects_in_pieces(states_BTD, head)
        hook.remove()


@pytest.mark.parametrize("form", FORMS)
def test_training_without_logits_gives_the_same_loss_and_gradients(form):
    results = []
    for return_logits in (True, False):
        model = tiny_model(form).train()
        ids = tokens(2, 9)
        out = model(
            input_ids=ids[:, :-1], shift_labels=ids[:, 1:], router_loss=RouterLoss(), return_logits=return_logits
        )
        out.loss.backward()
        results.append([out.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert return_logits == (out.logits is not None) or not hasattr(F, "linear_cross_entropy")
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole)


def test_auxiliary_losses_enter_by_the_share_of_an_accumulated_step():
    """Tests the loss of a part of a step that has 3 of the step's 12 labels."""
    routers = tiny_model().model(tokens(), with_losses=True).router_losses
    labels = torch.tensor([[5, 7, 9, -100]])
    lm_loss, weights = torch.tensor(2.0), RouterLoss(0.5, 0.25)
    whole = loss_fields(lm_loss, routers, weights)["loss"] - lm_loss
    part = loss_fields(lm_loss, routers, weights, labels, torch.tensor(12))["loss"] - lm_loss
    assert_close("loss", part, whole / 4)
    assert torch.equal(loss_fields(lm_loss, routers, weights, labels)["loss"] - lm_loss, whole)
    assert torch.equal(loss_fields(lm_loss, routers, None, labels, 12)["loss"], lm_loss)
