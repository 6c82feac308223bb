"""Tensors that a router and its layers keep for backward, counted at the real shape on tensors without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from monet import MonetConfig
from monet.kernels import dispatch
from monet.kernels.routing import again
from monet.model.experts import EXPERTS
from monet.model.losses import RouterLoss
from monet.model.router import MonetRouter
from tests.kernels.explicit import set_sizes

TOKENS, LAYERS = 16_384, 4
# D 2048, E 512, M 16, H 8 in bfloat16, KiB a token: a state, pre-activations of a layer, one axis' logits or gates.
STATE, HIDDEN, AXIS = 4.0, 16.0, 8.0


def config_of(decompose: str, **changes: Any) -> MonetConfig:
    keys = {
        "vocab_size": 40, "hidden_size": 2048, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "moe_experts": 512, "moe_heads": 8, "moe_dim": 16, "moe_topk": 8, "moe_groups": LAYERS,
        "moe_decompose": decompose,
    }  # fmt: skip
    return MonetConfig(**(keys | changes))


def kib_a_token_and_layer(decompose: str, spread: str | None, **options: Any) -> float:
    """KiB saved by a router and its layers in training, unique storages, without parameters."""
    saved: dict[int, int] = {}
    alive = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = config_of(decompose)
        router, layers = MonetRouter(config).train(), [EXPERTS[decompose](config).train() for _ in range(LAYERS)]
        own = {p.untyped_storage()._cdata for module in (router, *layers) for p in module.parameters()}
        states = [torch.randn(1, TOKENS, 2048, dtype=torch.bfloat16, requires_grad=True) for _ in layers]

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # an address must not be used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = None if spread is None else RouterLoss(uniformity_on=spread)
            routed = router(states[0], with_losses=spread is not None, router_loss=loss, **options)
            outputs = [
                layer(x_BTD, *routed.gates, shared=routed.shared) for layer, x_BTD in zip(layers, states, strict=True)
            ]
        assert all(output.requires_grad for output in outputs)
    return sum(saved.values()) / TOKENS / LAYERS / 1024


@pytest.fixture(autouse=True)
def bfloat16_modules(monkeypatch):
    """Nothing is computed here, so errors of the interpreter do not matter."""
    monkeypatch.setattr(dispatch, "WRONG_IN_BFLOAT16", ())
    dispatch._cached_choice.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)
    dispatch._cached_choice.cache_clear()


@pytest.mark.parametrize("spread", [None, "routing", "softmax", "firing"])
@pytest.mark.parametrize("decompose", ["horizontal", "vertical"])
def test_saved_bytes_at_the_real_shape(decompose, spread):
    """Each layer saves states and pre-activations; the group saves the gates, or with losses their logits."""
    wanted = STATE + HIDDEN + 2 * AXIS / LAYERS
    assert wanted == 24
    assert wanted <= kib_a_token_and_layer(decompose, spread) < wanted + 0.01


def test_float32_probabilities_are_saved_only_where_they_are_asked_for():
    lean, exact = (kib_a_token_and_layer("horizontal", None, float32_probs=wanted) for wanted in (False, True))
    assert exact - lean == pytest.approx(2 * 2 * AXIS / LAYERS, abs=0.01)


@pytest.mark.parametrize("spread", ["routing", "firing"])
@pytest.mark.parametrize("decompose", ["horizontal", "vertical"])
def test_gates_made_again_from_logits_give_the_same_gradients(decompose, spread, monkeypatch):
    """The group makes them once, with the same bits; gates that are not the router's own are kept unchanged."""
    torch.set_default_dtype(torch.float32)
    set_sizes(monkeypatch)
    config = config_of(
        decompose, hidden_size=16, num_attention_heads=2, moe_experts=10, moe_heads=2, moe_dim=4, moe_topk=3
    )  # fmt: skip
    router, layer = MonetRouter(config).train(), EXPERTS[decompose](config).train()
    for parameter in (*router.parameters(), *layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    made: list[bool] = []
    softmax = again.thresholded_softmax
    monkeypatch.setattr(again, "thresholded_softmax", lambda *a, **k: made.append(True) or softmax(*a, **k))
    x_BTD = torch.randn(1, 5, 16)

    def gradients(copied: bool) -> list[torch.Tensor]:
        routed = router(x_BTD, with_losses=True, router_loss=RouterLoss(uniformity_on=spread))
        gates = [gate.clone() if copied else gate for gate in routed.gates]
        out = x_BTD
        for _ in range(3):
            out = out + layer(out, *gates, shared=routed.shared)
        total = out.square().sum() + routed.uniformity + routed.ambiguity
        parameters = [*router.parameters(), *layer.parameters()]
        found = list(torch.autograd.grad(total, parameters))
        facts = routed.shared.of(*(gate.flatten(0, 1) for gate in routed.gates))
        assert all(known is not None and known.gates_again is None for known in facts), "freed after the last layer"
        return found

    lean = gradients(copied=False)
    assert len(made) == (2 if spread == "firing" else 0), "for the paper's loss the float32 gates are saved directly"
    made.clear()
    for got, wanted in zip(lean, gradients(copied=True), strict=True):
        assert torch.equal(got, wanted)
    assert not made
