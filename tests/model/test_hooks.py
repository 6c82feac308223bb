"""A hook on a router may change the routing, and hooks on output projections run."""

from __future__ import annotations

import pytest
import torch

from monet import MonetForCausalLM
from monet.errors import ConfigError
from monet.model.losses import RouterLoss
from monet.model.router import RouterOutput
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.bfloat16]


def first_key(output: RouterOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """Routing that sends every head of every token to expert (0, 0)."""
    g_BTHE = torch.zeros_like(output.g1_BTHE)
    g_BTHE[..., 0] = 1
    return g_BTHE, g_BTHE.clone()


def write(output: RouterOutput) -> None:
    for g_BTHE, new_BTHE in zip((output.g1_BTHE, output.g2_BTHE), first_key(output), strict=True):
        g_BTHE.copy_(new_BTHE)


RETURNS = {
    "RouterOutput": lambda output: output._replace(g1_BTHE=first_key(output)[0], g2_BTHE=first_key(output)[1]),
    "pair": first_key,
    "written into": write,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", RETURNS)
@pytest.mark.parametrize("form", FORMS)
def test_changed_probabilities_take_effect(form, way, dtype):
    model = tiny_model(form).to(dtype)
    routed = []
    for layer in model.model.layers:
        layer.moe.register_forward_pre_hook(lambda module, args: routed.append(args[1:]))
    for router in model.routers():
        router.register_forward_hook(lambda module, args, output: RETURNS[way](output))
    with torch.no_grad():
        changed = model(tokens()).logits
    assert len(routed) == 4 and all(len(gates) == 2 for gates in routed), "x, g1, g2 when nothing is masked"
    for gates in routed:
        for g_BTHE in gates:
            assert g_BTHE.dtype == dtype and (g_BTHE[..., 0] == 1).all() and g_BTHE.sum() == g_BTHE[..., 0].numel()
    with torch.no_grad():
        assert (changed.float() - tiny_model(form).to(dtype)(tokens()).logits.float()).abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_a_hook_that_only_looks_sees_float32(form, dtype):
    model, seen = tiny_model(form).to(dtype), []
    for router in model.routers():
        router.register_forward_hook(lambda module, args, output: seen.append(output.g1_BTHE.dtype))
    with torch.no_grad():
        model(tokens())
    assert seen == [torch.float32, torch.float32]


def numbers(model: MonetForCausalLM, mode: str) -> dict[str, torch.Tensor]:
    """All results of a forward in this mode, and in training of its backward."""
    model.train(mode != "inference")
    if mode == "inference":
        with torch.no_grad():
            return {"logits": model(tokens()).logits, "token": model(tokens()[:1, :1]).logits}
    loss = RouterLoss() if mode == "training with losses" else None
    out = model(tokens(), labels=tokens(), router_loss=loss)
    out.loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**found, **dict(model.named_buffers()), "loss": out.loss, "logits": out.logits}


NOTHING = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "forward with keywords": lambda module: module.register_forward_hook(lambda *_: None, with_kwargs=True),
    "forward pre": lambda module: module.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["inference", "training", "training with losses"])
@pytest.mark.parametrize("place", ["the router", "a linear of the router"])
@pytest.mark.parametrize("kind", NOTHING)
@pytest.mark.parametrize("form", FORMS)
def test_a_hook_that_does_nothing_changes_no_bit(form, kind, place, mode, dtype):
    wanted = numbers(tiny_model(form).to(dtype), mode)
    model = tiny_model(form).to(dtype)
    for router in model.routers():
        NOTHING[kind](router if place == "the router" else router.w1)
    got = numbers(model, mode)
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


@pytest.mark.parametrize("place", ["the router", "a linear of the router"])
@pytest.mark.parametrize("pre", [False, True], ids=["hook", "pre-hook"])
def test_a_backward_hook_changes_rounding_at_most(pre, place):
    """torch wraps the module in an extra node, and then accumulates gradients in another order."""
    model, seen = tiny_model(), []
    wanted = numbers(tiny_model(), "training")
    for router in model.routers():
        module = router if place == "the router" else router.w1
        if pre:
            module.register_full_backward_pre_hook(lambda *_: seen.append(True))
        else:
            module.register_full_backward_hook(lambda *_: seen.append(True))
    for name, value in numbers(model, "training").items():
        if value.is_floating_point():
            assert_close(name, value, wanted[name])
    assert len(seen) == (2 if place == "a linear of the router" else 0), "the layers' gates are inside a nested tuple"


def test_losses_under_a_pair():
    model = tiny_model()
    handles = [router.register_forward_hook(lambda m, a, output: output[:2]) for router in model.routers()]
    out = model(tokens(), labels=tokens())
    assert out.uniformity_loss is None and out.router_metrics == ()
    with pytest.raises(ConfigError, match="pair in training"):
        model(tokens(), labels=tokens(), router_loss=RouterLoss())
    with pytest.raises(ConfigError, match="pair in training"):
        model.train()(tokens())
    for handle in handles:
        handle.remove()
    assert_close("loss", out.loss, model.eval()(tokens(), labels=tokens()).loss)


@pytest.mark.parametrize(
    "returned", [torch.zeros(2), (torch.zeros(2), torch.zeros(2)), "text"], ids=["tensor", "shape", "text"]
)
def test_other_returns_are_refused(returned):
    model = tiny_model()
    model.routers()[0].register_forward_hook(lambda module, args, output: returned)
    with pytest.raises(ConfigError, match=r"a hook on a router returned .* \(2, 9, 3, 6\)"):
        model(tokens())


@pytest.mark.parametrize("form", FORMS)
def test_hooks_on_output_projections_fire_and_act(form):
    model, seen = tiny_model(form), []
    with torch.no_grad():
        wanted = model(tokens()).logits
        linears = [linear for layer in model.model.layers for linear in layer.moe.output_modules()]
        handles = [linear.register_forward_hook(lambda m, args, output: seen.append(args[0])) for linear in linears]
        assert_close("logits", model(tokens()).logits, wanted)
        assert len(seen) == len(linears)
        for handle in handles:
            handle.remove()
        assert torch.equal(model(tokens()).logits, wanted)
        linears[0].register_forward_hook(lambda module, args, output: output + 1)
        assert (model(tokens()).logits - wanted).abs().max() > 0.1
