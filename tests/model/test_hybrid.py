"""Hybrids: some layers keep a dense MLP, and routing groups count only the others."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from monet import ExpertMask, MonetConfig, MonetForCausalLM
from monet.errors import CheckpointError, ConfigError
from tests.model.tiny import FORMS, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close

# Five layers: groups are (1, 3) and (4).
HYBRID = {"num_hidden_layers": 5, "dense_layers": [0, 2], "intermediate_size": 40}


@pytest.fixture(params=FORMS)
def model(request) -> MonetForCausalLM:
    return tiny_model(request.param, **HYBRID)


def test_groups_count_only_monet_layers():
    config = tiny_config(**HYBRID)
    assert config.monet_layers == (1, 3, 4) and config.num_routing_groups == 2
    assert [config.routing_group(layer) for layer in range(5)] == [None, 0, None, 0, 1]
    assert [config.owns_router(layer) for layer in range(5)] == [False, True, False, False, True]


def test_without_dense_layers_the_file_is_unchanged():
    plain = tiny_config()
    assert plain.monet_layers == (0, 1, 2, 3) and plain.num_routing_groups == 2
    for same in (tiny_config(dense_layers=None), tiny_config(dense_layers=[])):
        assert same.to_json_string() == plain.to_json_string()
    assert "dense_" not in plain.to_json_string()


def test_the_file_names_dense_layers(tmp_path):
    config = tiny_config(**HYBRID, dense_act="gelu")
    config.save_pretrained(tmp_path)
    read = MonetConfig.from_pretrained(tmp_path)
    assert (read.dense_layers, read.intermediate_size, read.dense_act) == ([0, 2], 40, "gelu")
    assert read.to_json_string() == config.to_json_string()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dense_layers": [5]}, r"dense_layers=\[5\]: must be null or a list of layers from 0 to 4"),
        ({"dense_layers": [-1]}, r"from 0 to 4"),
        ({"dense_layers": [True]}, r"from 0 to 4"),
        ({"dense_layers": [2, 0]}, r"must be sorted"),
        ({"dense_layers": [0, 0]}, r"each layer once"),
        ({"dense_layers": [0, 1, 2, 3, 4]}, r"no Monet layer is left"),
        ({"intermediate_size": None}, r"intermediate_size is missing"),
        ({"intermediate_size": 0}, r"intermediate_size=0: must be a whole number"),
        ({"dense_act": "sharp"}, r"dense_act='sharp': choose from"),
        ({"dense_act": "sharp", "dense_layers": None}, r"dense_act='sharp': choose from"),
        ({"mlp_bias": True}, r"mlp_bias=True: the dense layers of a hybrid have no biases"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**{**HYBRID, **changes})


def test_logits_equal_a_loop_over_the_layers(model):
    """Dense layers compute what LLaMA's MLP computes; a Monet layer takes the gates of its group's first layer."""
    body, ids = model.model, tokens()
    x, routing = body.embed_tokens(ids), ()
    places = torch.arange(ids.shape[1])[None]
    causal = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    for index, layer in enumerate(body.layers):
        attended, _ = layer.self_attn(
            layer.input_layernorm(x), position_embeddings=body.rotary_emb(x, places), attention_mask=causal
        )
        x = x + attended
        normed = layer.post_attention_layernorm(x)
        if index in HYBRID["dense_layers"]:
            settings = copy.copy(model.config)
            settings.hidden_act, settings.mlp_bias = "silu", False
            mlp = LlamaMLP(settings)
            mlp.load_state_dict(layer.mlp.state_dict())
            x = x + mlp(normed)
            continue
        if index in (1, 4):
            routing = layer.router(normed)[:2]
        x = x + layer.moe(normed, *routing)
    assert_close("logits", model(ids).logits, model.lm_head(body.norm(x)))


def test_probabilities_have_an_entry_for_each_layer(model):
    probs = model(tokens(), output_router_probs=True).router_probs
    assert probs is not None
    assert [one is not None for one in probs] == [False, True, False, False, True]


def test_cached_and_uncached_tokens_are_equal(model):
    mask = ExpertMask.random(model.config, [12, 12], seed=1)
    for kwargs in ({}, {"num_beams": 2}, {"expert_mask": mask}):
        options = {"max_new_tokens": 12, "do_sample": False, **kwargs}
        cached, plain = (model.generate(tokens(), use_cache=cache, **options) for cache in (True, False))
        assert torch.equal(cached, plain)


def test_masks_cover_monet_layers_only(model, tmp_path):
    keep_REE = torch.ones(2, 6, 6, dtype=torch.bool)
    keep_REE[1] = False
    mask = ExpertMask(keep_REE)
    assert len(mask.sites(model)) == 3
    silent = copy.deepcopy(model)
    with torch.no_grad():  # without its experts, the last layer adds nothing
        for parameter in silent.model.layers[4].moe.parameters():
            parameter.zero_()
    assert_close("logits", model(tokens(), expert_mask=mask).logits, silent(tokens()).logits)
    model.set_expert_mask(mask)
    model.save_pretrained(tmp_path)
    assert torch.equal(MonetForCausalLM.from_pretrained(tmp_path)(tokens()).logits, model(tokens()).logits)
    with pytest.raises(CheckpointError, match="3"):
        ExpertMask(torch.ones(3, 6, 6, dtype=torch.bool)).check_fits(model)


def test_other_dense_layers_are_another_model():
    """The signs of all weights are equal, but the layers are in other places."""
    first = tiny_model(**HYBRID)
    second = tiny_model(**{**HYBRID, "dense_layers": [0, 1]})
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == tiny_model(**HYBRID).fingerprint()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_weight(form):
    model = tiny_model(form, **HYBRID).train()
    model(tokens(), labels=tokens()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_an_early_exit_counts_the_groups_below_it(model):
    model.config.num_hidden_layers = 4
    assert model.config.num_routing_groups == 1
    assert len(model(tokens(), output_hidden_states=True).hidden_states) == 5
