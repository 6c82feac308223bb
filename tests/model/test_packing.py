"""Several documents in one row: each is computed as if it were the only one, under every attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from monet.model.packing import varlen_arguments
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import assert_close, relative_rms

LENGTHS = ([4, 1, 7, 3], [9, 6])
POSITIONS = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])


def segmented(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
    """Does what flash attention does with `cu_seq_lens_q`, segment by segment."""
    assert attention_mask is None
    assert cu_seq_lens_q is None or cu_seq_lens_q.dtype == torch.int32
    heads = [states.transpose(1, 2) for states in (query, key, value)]
    B, T = heads[0].shape[:2]
    flat = [states.reshape(1, B * T, *states.shape[2:]).transpose(1, 2) for states in heads]
    edges = range(0, B * T + 1, T) if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    if cu_seq_lens_q is not None:
        assert kwargs["cu_seq_lens_k"].tolist() == edges
        assert kwargs["max_length_q"] == kwargs["max_length_k"] == int(cu_seq_lens_q.diff().max())
    parts = [
        scaled_dot_product_attention(*(s[:, :, a:b] for s in flat), is_causal=True, scale=scaling)
        for a, b in itertools.pairwise(edges)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).reshape(B, T, -1, query.shape[-1]), None


@pytest.fixture
def attention(request, monkeypatch):
    """A model with one attention implementation; a function with flash attention's contract replaces it."""

    def make(form):
        model = tiny_model(form, attn_implementation="sdpa" if request.param == "flash" else request.param)
        if request.param == "flash":
            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", segmented)
            model.config._attn_implementation = "flash_attention_2"
        return model

    return make


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_row_equals_each_document_alone(form, attention):
    model, ids = attention(form), tokens(2, 15)
    with torch.no_grad():
        packed = model(ids, position_ids=POSITIONS, use_cache=False).logits
        for row, lengths in enumerate(LENGTHS):
            for piece, got in zip(ids[row].split(lengths), packed[row].split(lengths), strict=True):
                assert_close("logits", got, model(piece[None], use_cache=False).logits[0])
        unmasked = model(ids, use_cache=False).logits
    assert relative_rms(packed[:, :4], unmasked[:, :4]) < 1e-5
    assert relative_rms(packed[:, 9:], unmasked[:, 9:]) > 1e-2


@pytest.mark.slow
def test_flex_attention_keeps_documents_apart():
    model, ids = tiny_model(head_dim=16), tokens(2, 15)
    with torch.no_grad():
        wanted = model(ids, position_ids=POSITIONS, use_cache=False).logits
        model.set_attn_implementation("flex_attention")
        got = model(ids, position_ids=POSITIONS, use_cache=False).logits
    assert relative_rms(got, wanted) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash"], indirect=True)
def test_gradients_stay_inside_a_document(attention):
    model, ids = attention("vertical"), tokens(2, 15)
    model.freeze_router()
    embedded = model.model.embed_tokens(ids).detach().requires_grad_()
    model(inputs_embeds=embedded, position_ids=POSITIONS, use_cache=False).logits[0, 5:12].sum().backward()
    moved = embedded.grad.abs().sum(-1) > 0
    assert moved[0].tolist() == [False] * 5 + [True] * 7 + [False] * 3
    assert not moved[1].any()


def test_the_router_takes_every_token_of_a_packed_row_as_it_takes_others():
    """Without attention, documents cannot affect each other's router losses and statistics."""
    ids, results = tokens(2, 15), []
    for positions in (None, POSITIONS):
        model = tiny_model().train()
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        out = model(ids, position_ids=positions, shift_labels=ids, use_cache=False)
        statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
        results.append([out.uniformity_loss, out.ambiguity_loss, *statistics])
        assert all(metrics.fired_2HE.sum() > 0 for metrics in out.router_metrics)
    for plain, packed in zip(*results, strict=True):
        assert torch.equal(plain, packed)


def test_rows_of_one_document_need_no_arguments():
    assert varlen_arguments(torch.arange(6)[None], 3) == {}
    found = varlen_arguments(POSITIONS, 2)
    assert found["cu_seq_lens_q"].tolist() == [0, 4, 5, 12, 15, 24, 30]
    assert found["max_length_q"] == 9
