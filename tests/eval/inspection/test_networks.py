"""Explicit experts equal the layers, and the static effect is their mean through norm and unembedding."""

from __future__ import annotations

import pytest
import torch

from monet.errors import ConfigError
from monet.eval.index.index import Context
from monet.eval.index.text import Window
from monet.eval.index.units import Units
from monet.eval.inspection.networks import dense_expert, mask_of, monet_layers
from monet.eval.inspection.promoted import measured, static, static_of_each
from tests.eval.index.conftest import E, make_model


@pytest.fixture(params=["vertical", "horizontal"])
def model(request):
    return make_model(moe_decompose=request.param)


def test_a_layer_is_the_weighted_sum_of_its_explicit_experts(model):
    layer = monet_layers(model, 1)[0][1]
    x = torch.randn(1, 3, 16)
    with torch.no_grad():
        routed = model.routers()[1](x)
        wanted = layer.moe(x, routed.g1_BTHE, routed.g2_BTHE)[0]
    found = torch.zeros(3, 16)
    for i in range(E):
        for j in range(E):
            weight = (routed.g1_BTHE[0, :, :, i] * routed.g2_BTHE[0, :, :, j]).sum(-1, keepdim=True)
            with torch.no_grad():
                found += weight * dense_expert(layer.moe, i, j).output(x[0])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_mean_output_is_that_of_random_inputs(model):
    expert = dense_expert(monet_layers(model, 0)[0][1].moe, 2, 5)
    scale = torch.rand(16) + 0.5
    with torch.no_grad():
        drawn = expert.output(torch.randn(200_000, 16, generator=torch.Generator().manual_seed(0)) * scale)
        assert torch.allclose(expert.mean_output(scale), drawn.mean(0), atol=5 * float(drawn.std()) / 200_000**0.5)


def test_the_static_effect_is_read_from_the_weights(model):
    unit = Units(2, E).pair(0, 2, 5)
    effect = static(model, unit)
    direction = sum(
        dense_expert(layer.moe, 2, 5).mean_output(layer.post_attention_layernorm.weight)
        for _, layer in monet_layers(model, 0)
    )
    wanted = model.lm_head.weight @ (direction * model.model.norm.weight)
    assert torch.allclose(effect.effect_V, wanted, atol=1e-6)
    values = [value for _, value in effect.promoted(24)]
    assert values == sorted(values, reverse=True) and effect.suppressed(1)[0] == effect.promoted(24)[-1]
    with pytest.raises(ConfigError, match="half"):
        static(model, Units(2, E).half(0, i=2))


def test_the_static_effect_of_a_half_precision_model_is_not_rounded(model):
    unit = Units(2, E).pair(0, 2, 5)
    exact = static(model.bfloat16().float(), unit).effect_V
    assert torch.allclose(static(model.bfloat16(), unit).effect_V, exact, rtol=1e-6, atol=1e-9)


def test_many_experts_have_the_static_effects_that_each_has_alone(model):
    units = [Units(2, E).pair(group, i, j) for group in range(2) for i in range(E) for j in range(E)]
    found = list(static_of_each(model, units))
    assert len(found) == len(units)
    for unit, one in zip(units, found, strict=True):
        assert torch.allclose(one.effect_V, static(model, unit).effect_V, atol=1e-6)
    with pytest.raises(ConfigError, match="half"):
        next(static_of_each(model, [units[0], Units(2, E).half(0, i=2)]))


def test_the_measured_effect_is_the_difference_of_two_models(model):
    unit = Units(2, E).half(0, i=2)
    window = Window(0, "a", "0", None, 5, [1, 2, 3, 4, 5], None)
    found = measured(model, unit, [(Context(0, 2, 1.0), window), (Context(0, 4, 1.0), window)])
    with torch.no_grad():
        ids = torch.tensor([window.ids])
        difference = (model(ids).logits - model(ids, expert_mask=mask_of(model, [unit])).logits)[0]
    assert torch.allclose(found.effect_V, (difference[2] + difference[4]) / 2, atol=1e-5)
    assert found.contexts == 2 and found.error_V is not None
    with pytest.raises(ConfigError, match="no context"):
        measured(model, unit, [])


def test_adapted_weights_are_not_read(model):
    moe = monet_layers(model, 0)[0][1].moe
    name = "v" if hasattr(moe, "v") else "v12"
    getattr(moe, name).register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="merge adapters"):
        dense_expert(moe, 0, 0)
