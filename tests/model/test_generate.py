"""Generation: every way of decoding gives the same tokens as plain forwards."""

from __future__ import annotations

import warnings
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, QuantizedCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from monet import ExpertMask
from monet.model.cache_keyword import CACHE_KEYWORD, one_cache
from tests.model.tiny import FORMS, tiny_model, tokens

GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def greedy_by_hand(model, ids: Tensor, steps: int = 6) -> Tensor:
    for _ in range(steps):
        logits = model(ids, use_cache=False).logits[:, -1]
        logits[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


def mask_of(ids: Tensor) -> Tensor:
    return torch.ones_like(ids)


@pytest.mark.parametrize("form", FORMS)
def test_greedy(form):
    model, ids = tiny_model(form), tokens()
    wanted = greedy_by_hand(model, ids)
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        got = model.generate(ids, attention_mask=mask_of(ids), **GREEDY, **options)
        assert torch.equal(got, wanted), options


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_static_cache_with_either_attention(attention):
    model, ids = tiny_model(attn_implementation=attention), tokens(1)
    wanted = greedy_by_hand(model, ids)
    got = model.generate(ids, attention_mask=mask_of(ids), cache_implementation="static", **GREEDY)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("cached", [True, False])
def test_a_left_padded_batch_equals_one_by_one(cached):
    model = tiny_model()
    rows = [tokens(1, length, seed=length) for length in (4, 9, 7)]
    ids = torch.cat([torch.nn.functional.pad(row, (9 - row.shape[1], 0)) for row in rows])
    attention_mask = torch.stack([(torch.arange(9) >= 9 - row.shape[1]).long() for row in rows])
    together = model.generate(ids, attention_mask=attention_mask, use_cache=cached, **GREEDY)
    for row, got in zip(rows, together, strict=True):
        assert torch.equal(got[-6:], greedy_by_hand(model, row)[0, -6:])


@pytest.mark.parametrize("form", FORMS)
def test_beam_search(form):
    """With as many beams as continuations, beam search finds the best two steps: compare with all pairs."""
    model, ids = tiny_model(form, vocab_size=61), tokens(1)
    first = model(ids).logits[0, -1].log_softmax(-1)
    first[2] = -torch.inf
    best = (-torch.inf, None)
    for token in range(61):
        if token == 2:
            continue
        second = model(torch.cat([ids, torch.tensor([[token]])], 1)).logits[0, -1].log_softmax(-1)
        second[2] = -torch.inf
        score, last = (first[token] + second).max(-1)
        best = max(best, (score.item(), (token, last.item())))
    got = model.generate(
        ids, attention_mask=mask_of(ids), num_beams=61, max_new_tokens=2, min_new_tokens=2, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    assert tuple(got[0, -2:].tolist()) == best[1]


def test_beams_of_a_batch_do_not_mix():
    model, ids = tiny_model(), tokens(3)
    together = model.generate(ids, attention_mask=mask_of(ids), num_beams=4, **GREEDY)
    for b in range(3):
        alone = model.generate(ids[b : b + 1], attention_mask=mask_of(ids[:1]), num_beams=4, **GREEDY)
        assert torch.equal(alone[0], together[b])


def test_sampling_follows_the_seed():
    model, ids = tiny_model(), tokens(1)
    options = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 3, "pad_token_id": 0}
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(model.generate(ids, attention_mask=mask_of(ids), **options))
    assert runs[0].shape[0] == 3
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape != runs[2].shape or not torch.equal(runs[0], runs[2])


def test_sampling_draws_from_the_models_distribution():
    model, ids = tiny_model(), tokens(1)
    wanted = model(ids).logits[0, -1].softmax(-1)
    drawn = model.generate(
        ids, attention_mask=mask_of(ids), do_sample=True, top_k=0, max_new_tokens=1, num_return_sequences=4000,
        pad_token_id=0,
    )[:, -1]  # fmt: skip
    frequency = torch.bincount(drawn, minlength=61) / 4000
    assert (frequency - wanted).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_generation_stops_at_the_end_token():
    model, ids = tiny_model(), tokens()
    whole = greedy_by_hand(model, ids)
    new = whole[0, 9:].tolist()
    end = next(token for token in new[1:] if token not in whole[1, 9:])
    stop = new.index(end)
    got = model.generate(
        ids, attention_mask=mask_of(ids), do_sample=False, max_new_tokens=6, eos_token_id=[end], pad_token_id=0,
        bad_words_ids=[[2]],
    )  # fmt: skip
    assert torch.equal(got[1], whole[1])
    assert got[0, 9:].tolist() == new[: stop + 1] + [0] * (5 - stop)


def test_from_embeddings():
    model, ids = tiny_model(), tokens(1)
    wanted = greedy_by_hand(model, ids)[:, 9:]
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embedded, attention_mask=mask_of(ids), **GREEDY), wanted)


def test_router_probabilities_of_generated_tokens():
    model, ids = tiny_model(), tokens(1)
    out = model.generate(
        ids, attention_mask=mask_of(ids), return_dict_in_generate=True, output_logits=True, output_router_probs=True,
        **GREEDY,
    )  # fmt: skip
    assert torch.equal(out.sequences, greedy_by_hand(model, ids))
    assert len(out.logits) == 6


def test_a_cache_can_be_continued():
    model, ids = tiny_model(), tokens(1)
    wanted = greedy_by_hand(model, ids)
    first = model.generate(
        ids, attention_mask=mask_of(ids), do_sample=False, max_new_tokens=3, min_new_tokens=3, pad_token_id=0,
        return_dict_in_generate=True,
    )  # fmt: skip
    rest = model.generate(
        first.sequences, attention_mask=mask_of(first.sequences), do_sample=False, max_new_tokens=3, min_new_tokens=3,
        pad_token_id=0, **{CACHE_KEYWORD: first[CACHE_KEYWORD]},
    )  # fmt: skip
    assert torch.equal(rest, wanted)


CACHES = {
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
}
SEARCHES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20},
    "several sampled": {"do_sample": True, "num_return_sequences": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
}


def left_padded(rows: int = 2) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of rows with 0, 3, 6, ... tokens of padding in front."""
    ids, attention_mask = tokens(rows, 12), torch.ones(rows, 12, dtype=torch.long)
    for row in range(rows):
        ids[row, : 3 * row], attention_mask[row, : 3 * row] = 0, 0
    return ids, attention_mask


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("search", SEARCHES)
def test_tokens_with_a_cache_are_those_without(form, cache, search):
    """Twelve new tokens: a cache that loses earlier tokens is detected from the third token on."""
    model = tiny_model(form)
    ids, attention_mask = left_padded()
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0, **SEARCHES[search]}
    got = []
    for choice in (CACHES[cache], {"use_cache": False}):
        torch.manual_seed(7)
        got.append(model.generate(ids, attention_mask=attention_mask, **options, **choice))
    assert torch.equal(*got)


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_cache(form, monkeypatch):
    """Four bits lose too much precision to compare with no cache; compare with manual steps over the same cache."""
    pytest.importorskip("optimum.quanto", reason="quantised caches need optimum-quanto")
    from optimum.quanto.library.extensions.extension import get_extension

    def unpack(packed: Tensor, bits: int) -> Tensor:
        return torch.cat([(packed >> place) & (2**bits - 1) for place in range(0, 8, bits)])

    # quanto's own function in C++ takes almost a minute to build
    monkeypatch.setattr(get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpack))
    model, ids = tiny_model(form), tokens()
    settings = {"backend": "quanto", "q_group_size": 24, "residual_length": 4}
    got = model.generate(
        ids, attention_mask=mask_of(ids), cache_implementation="quantized", cache_config=dict(settings),
        **GREEDY | {"max_new_tokens": 12, "min_new_tokens": 12},
    )  # fmt: skip
    cache, wanted, last = QuantizedCache(config=model.config, **settings), ids, ids
    for _ in range(12):
        logits = model(last, cache=cache).logits[:, -1]
        logits[:, model.config.eos_token_id] = -torch.inf
        last = logits.argmax(-1, keepdim=True)
        wanted = torch.cat([wanted, last], 1)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("guess", ["assistant", "prompt lookup"])
def test_guessed_tokens_are_the_models_own(form, guess):
    """Guesses that the model rejects must also be removed from the cache."""
    model, ids = tiny_model(form), tokens(1)
    if guess == "assistant":
        options = {"assistant_model": tiny_model(seed=3, num_hidden_layers=2)}
    else:
        options = {"prompt_lookup_num_tokens": 3}
    got = model.generate(ids, attention_mask=mask_of(ids), **options, **GREEDY | {"max_new_tokens": 12})
    wanted = model.generate(ids, attention_mask=mask_of(ids), use_cache=False, **GREEDY | {"max_new_tokens": 12})
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_forward_takes_the_cache_by_either_name(name):
    """This holds for every release, since callers may be written for an older or a newer one."""
    model, ids = tiny_model(), tokens()
    whole, cache = model(ids, use_cache=False).logits, DynamicCache(config=model.config)
    pieces = [model(ids[:, t : t + 1], **{name: cache}).logits for t in range(9)]
    assert cache.get_seq_length() == 9
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


def test_two_caches_are_refused():
    model, ids = tiny_model(), tokens()
    first, second = DynamicCache(config=model.config), DynamicCache(config=model.config)
    assert one_cache(first, first, {}) == (first, {})
    with pytest.raises(TypeError, match="two caches were given"):
        model(ids, cache=first, past_key_values=second)


def test_generation_warns_of_nothing():
    """A later release may ignore a deprecated name that still works today."""
    model, ids = tiny_model(), tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids, attention_mask=mask_of(ids), **GREEDY)


@pytest.mark.parametrize("form", FORMS)
def test_continuous_batching(form):
    """Before transformers 5.24 its paged cache has a different keyword. A stored mask is active in its thread."""
    model = tiny_model(form)
    model.set_expert_mask(ExpertMask.random(model.config, 30, seed=0))
    prompts = [[3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [20, 21]]
    settings = {"num_blocks": 16, "max_batch_tokens": 64}
    fields = signature(ContinuousBatchingConfig).parameters
    settings["page_size" if "page_size" in fields else "block_size"] = 32
    got = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
    )
    tokens_of = [got[name].generated_tokens for name in sorted(got)]
    for prompt, new in zip(prompts, tokens_of, strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(ids, attention_mask=mask_of(ids), use_cache=False, max_new_tokens=8, do_sample=False)
        assert new == wanted[0, len(prompt) :].tolist()
