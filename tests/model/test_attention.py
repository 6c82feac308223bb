"""Attention through transformers' interface: implementations agree, and every Llama option has an effect."""

from __future__ import annotations

import pytest
import torch

from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import assert_close, relative_rms

SHAPES = {
    "plain": {},
    "grouped queries": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
    "one key-value head": {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 32},
    "head_dim given": {"head_dim": 16},
    "biases": {"attention_bias": True},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_eager_and_sdpa_agree(form, shape):
    logits = []
    for attention in ("eager", "sdpa"):
        model = tiny_model(form, attn_implementation=attention, **SHAPES[shape])
        assert model.config._attn_implementation == attention
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[1, :3] = 0
        logits.append(model(tokens(), attention_mask=mask).logits[mask.bool()])
    assert_close("logits", *logits)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_flex_attention_agrees(form):
    model = tiny_model(form, head_dim=16)
    with torch.no_grad():
        wanted = model(tokens(1)).logits
        model.set_attn_implementation("flex_attention")
        got = model(tokens(1)).logits
    assert relative_rms(got, wanted) < 1e-5


def test_the_implementation_can_be_switched():
    model = tiny_model()
    before = model(tokens()).logits
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert_close("logits", model(tokens()).logits, before)


def test_grouped_queries_share_keys():
    """Two query heads for each key head give the same result as four key heads in two equal pairs."""
    few = tiny_model(**SHAPES["grouped queries"])
    many = tiny_model(num_attention_heads=4, hidden_size=32)
    state = few.state_dict()
    for name in list(state):
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1)
    many.load_state_dict(state)
    assert_close("logits", few(tokens()).logits, many(tokens()).logits)


def test_attention_biases_count_on_all_four_projections():
    model = tiny_model(attention_bias=True)
    before = model(tokens()).logits
    for name in ("q_proj", "v_proj", "o_proj", "k_proj"):
        linear = getattr(model.model.layers[0].self_attn, name)
        assert linear.bias is not None
        with torch.no_grad():
            linear.bias.normal_()
        after = model(tokens()).logits
        # a constant added to every key only shifts the scores of a query; rotary positions change this slightly
        assert relative_rms(after, before) > 1e-4, name
        before = after


def test_dropout_acts_in_training_only():
    model = tiny_model(attention_dropout=0.5, attn_implementation="eager")
    model.freeze_router()
    assert torch.equal(model(tokens()).logits, model(tokens()).logits)
    model.train()
    assert not torch.equal(model(tokens()).logits, model(tokens()).logits)


def test_rope_theta_and_scaling_count():
    long = tokens(1, 60)
    plain = tiny_model()(long).logits
    for changes in (
        {"rope_theta": 100.0},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    ):
        assert relative_rms(tiny_model(**changes)(long).logits, plain) > 1e-2, changes
    slow = tiny_model(rope_scaling={"rope_type": "linear", "factor": 4.0})
    spread = slow(long, position_ids=4 * torch.arange(60)[None]).logits
    assert_close("positions divided by the factor", spread, plain, torch.float32)
