"""The outputs of a forward follow the conventions of transformers."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from monet import MonetForCausalLM, MonetModel
from monet.model.cache_keyword import CACHE_KEYWORD
from tests.model.tiny import FORMS, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close


def test_order_of_a_tuple():
    """Trainers take the first entry as the loss and the next as the logits."""
    model = tiny_model()
    named = model(tokens(), labels=tokens(), output_hidden_states=True, output_router_probs=True)
    plain = model(tokens(), labels=tokens(), output_hidden_states=True, output_router_probs=True, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], named.loss) and torch.equal(plain[1], named.logits)
    assert plain[2].get_seq_length() == 9, "the cache comes third"
    assert len(plain[3]) == 5, "then the hidden states"
    assert list(named.keys())[:4] == ["loss", "logits", CACHE_KEYWORD, "hidden_states"]
    without = model(tokens(), use_cache=False, return_dict=False)
    assert len(without) == 1 and torch.equal(without[0], named.logits)
    base = model.model(tokens(), return_dict=False)
    assert torch.equal(model.lm_head(base[0]), named.logits)


def test_a_trainers_evaluation_sees_the_logits_alone():
    """transformers' Trainer gathers every output that the configuration does not name as one to ignore."""
    model = tiny_model()
    out = model(tokens(), labels=tokens(), output_router_probs=True)
    ignored = [*model.config.keys_to_ignore_at_inference, "loss"]
    assert [key for key in out if key not in ignored] == ["logits"]


@pytest.mark.parametrize("form", FORMS)
def test_hidden_states(form):
    model = tiny_model(form)
    inputs = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    out = model(tokens(), output_hidden_states=True)
    assert len(out.hidden_states) == 5
    assert torch.equal(out.hidden_states[0], model.model.embed_tokens(tokens()))
    for ours, theirs in zip(out.hidden_states[:-1], inputs, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits), "the last entry comes after the final norm"
    assert model(tokens()).hidden_states is None


def test_attentions():
    model = tiny_model(attn_implementation="eager")
    out = model(tokens(), output_attentions=True)
    assert [tuple(attention.shape) for attention in out.attentions] == [(2, 2, 9, 9)] * 4
    assert_close("rows of attention", out.attentions[0].sum(-1), torch.ones(2, 2, 9))
    assert out.attentions[0].triu(1).eq(0).all()
    assert model(tokens()).attentions is None


@pytest.mark.parametrize(
    ("layers", "groups", "owners"), [(4, 2, [0, 2]), (5, 2, [0, 2, 4]), (3, 8, [0]), (2, 1, [0, 1])]
)
def test_router_probabilities(layers, groups, owners):
    model = tiny_model(num_hidden_layers=layers, moe_groups=groups)
    assert model.config.num_routing_groups == len(owners) == len(model.routers())
    out = model(tokens(), output_router_probs=True)
    assert [index for index, entry in enumerate(out.router_probs) if entry is not None] == owners
    assert len(out.router_probs) == layers
    for index in owners:
        for g_BTHE in out.router_probs[index]:
            assert g_BTHE.shape == (2, 9, 3, 6) and g_BTHE.dtype == torch.float32
            torch.testing.assert_close(g_BTHE.sum(-1), torch.ones(2, 9, 3))
    assert model(tokens()).router_probs is None
    assert [index for index, layer in enumerate(model.model.layers) if layer.router is not None] == owners


def test_router_probabilities_by_configuration():
    model = tiny_model(output_router_probs=True)
    assert model(tokens()).router_probs is not None
    assert model.model(tokens()).router_probs is not None
    assert model(tokens(), output_router_probs=False).router_probs is None


def test_router_probabilities_of_a_cached_step_are_those_of_the_new_token():
    model = tiny_model()
    whole = model(tokens(), output_router_probs=True).router_probs
    past = model(tokens()[:, :8])[CACHE_KEYWORD]
    step = model(tokens()[:, 8:], cache=past, output_router_probs=True).router_probs
    assert step[0][0].shape == (2, 1, 3, 6)
    assert_close("g1", step[2][0], whole[2][0][:, 8:], torch.float32)


def test_router_hooks_see_the_probabilities():
    model, seen = tiny_model(), []
    for router in model.routers():
        router.register_forward_hook(lambda module, args, output: seen.append(output.g1_BTHE))
    wanted = model(tokens(), output_router_probs=True).router_probs
    assert len(seen) == 2 and torch.equal(seen[1], wanted[2][0])


@pytest.mark.parametrize("training", [False, True])
def test_hooks_on_the_linears_see_logits(training):
    """Probing tools hook linears: tensors that they keep must not be overwritten later."""
    model, seen = tiny_model().train(training), []
    linears = [linear for router in model.routers() for linear in (router.w1, router.w2)]
    linears += [layer.moe.u1 for layer in model.model.layers]
    for linear in linears:
        linear.register_forward_hook(lambda module, args, output: seen.append((output, output.detach().clone())))
    model(tokens(), labels=tokens()).loss.backward()
    assert len(seen) == 8
    for kept, then in seen:
        assert torch.equal(kept, then)
    logits = seen[0][0]
    assert (logits < 0).any() and not torch.allclose(logits.unflatten(-1, (3, 6)).sum(-1), torch.tensor(1.0))


@pytest.mark.parametrize("form", FORMS)
def test_a_cached_step_equals_the_whole(form):
    model = tiny_model(form)
    whole = model(tokens()).logits
    out = model(tokens()[:, :4], use_cache=True)
    pieces = [out.logits]
    for t in range(4, 9):
        out = model(tokens()[:, t : t + 1], cache=out[CACHE_KEYWORD], use_cache=True)
        pieces.append(out.logits)
    assert_close("logits", torch.cat(pieces, 1), whole)
    assert CACHE_KEYWORD not in model(tokens(), use_cache=False)


@pytest.mark.parametrize("form", FORMS)
def test_left_padding_changes_nothing_at_real_tokens(form):
    model = tiny_model(form)
    ids = torch.cat([torch.zeros(1, 5, dtype=torch.long), tokens(1)], 1)
    attention_mask = (torch.arange(14) >= 5).long()[None]
    padded = model(ids, attention_mask=attention_mask).logits[:, 5:]
    assert_close("logits", padded, model(tokens(1)).logits, torch.float32)
    labels = ids.masked_fill(attention_mask == 0, -100)
    labels[:, 5] = -100
    loss = model(ids, attention_mask=attention_mask, labels=labels).lm_loss
    torch.testing.assert_close(loss, model(tokens(1), labels=tokens(1)).lm_loss)


def test_right_padding_changes_nothing_at_real_tokens():
    model = tiny_model()
    ids = torch.cat([tokens(1), torch.zeros(1, 5, dtype=torch.long)], 1)
    attention_mask = (torch.arange(14) < 9).long()[None]
    assert_close("logits", model(ids, attention_mask=attention_mask).logits[:, :9], model(tokens(1)).logits)


def test_sequences_of_a_batch_do_not_see_each_other():
    model = tiny_model()
    together = model(tokens(3)).logits
    for b in range(3):
        assert_close("logits", model(tokens(3)[b : b + 1]).logits[0], together[b])


def test_the_future_is_not_seen():
    model, changed = tiny_model(), tokens()
    changed[:, 6] = 5
    before, after = model(tokens()).logits, model(changed).logits
    assert_close("earlier logits", after[:, :6], before[:, :6])
    assert not torch.allclose(after[:, 6:], before[:, 6:])


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 5]), 0], ids=str)
def test_logits_to_keep(kept):
    model = tiny_model()
    whole = model(tokens()).logits
    wanted = whole[:, kept] if isinstance(kept, torch.Tensor) else whole[:, -kept:]
    assert_close("logits", model(tokens(), logits_to_keep=kept).logits, wanted)


def test_embeddings_instead_of_ids():
    model = tiny_model()
    embedded = model.get_input_embeddings()(tokens())
    assert torch.equal(model(inputs_embeds=embedded).logits, model(tokens()).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(tokens(), inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_positions_can_be_given():
    model = tiny_model()
    shifted = model(tokens(), position_ids=torch.arange(9)[None] + 7).logits
    assert_close("rotary positions are relative", shifted, model(tokens()).logits, torch.float32)
    stretched = model(tokens(), position_ids=torch.arange(9)[None] * 3).logits
    assert not torch.allclose(stretched, shifted, atol=1e-3)


def test_a_copied_model_is_another_model():
    model = tiny_model()
    before = model(tokens()).logits
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.model.layers[0].moe.b1.add_(1)
        copied.model.layers[0].router.norm1.running_mean.add_(1)
    assert torch.equal(model(tokens()).logits, before)
    assert not torch.allclose(copied(tokens()).logits, before)


def test_nothing_keeps_a_graph_alive():
    model = tiny_model().train()
    out = model(tokens(), labels=tokens(), output_router_probs=True)
    watched = [weakref.ref(tensor) for tensor in (out.logits, out.loss, out.router_probs[0][0])]
    metrics = out.router_metrics
    del out
    gc.collect()
    assert [reference() for reference in watched] == [None, None, None]
    assert metrics[0].fired_2HE.sum() > 0
    assert not any(buffer.requires_grad for buffer in model.buffers())


def test_no_gradient_is_recorded_in_inference():
    with torch.no_grad():
        out = tiny_model()(tokens(), output_router_probs=True)
    assert not out.logits.requires_grad and not out.router_probs[0][0].requires_grad
    with torch.inference_mode():
        inference = tiny_model()(tokens(), labels=tokens())
    assert torch.equal(inference.logits, out.logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ["silu", "gelu", "relu"])
def test_other_activations(form, act):
    out = tiny_model(form, hidden_act=act)(tokens()).logits
    assert out.isfinite().all()
    assert not torch.allclose(out, tiny_model(form)(tokens()).logits, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_all_keys_active(form):
    model = tiny_model(form, moe_topk=6)
    out = model(tokens(), output_router_probs=True)
    assert out.logits.isfinite().all()
    assert all((g > 0).all() for g in out.router_probs[0])


def test_base_model_and_head():
    base = MonetModel(tiny_config())
    assert base.base_model is base
    model = MonetForCausalLM(tiny_config())
    assert model.base_model is model.model and model.base_model_prefix == "model"
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_input_embeddings() is model.model.embed_tokens
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model(tokens()).logits.shape == (2, 9, 70) and model.config.vocab_size == 70


def test_fresh_weights():
    model = MonetForCausalLM(tiny_config(hidden_size=64, moe_experts=32, initializer_range=0.02))
    for name, tensor in model.state_dict().items():
        if "running_mean" in name or "num_batches" in name or name.split(".")[-1] in ("bias", "b1", "b2", "b"):
            assert tensor.eq(0).all(), name
        elif "running_var" in name or ("norm" in name and "router" not in name):
            assert tensor.eq(1).all(), name
        elif "embed_tokens" in name:
            assert tensor[0].eq(0).all() and tensor[1:].std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1), name
