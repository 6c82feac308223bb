"""Unknown keywords are refused, and the error names the most similar known one."""

from __future__ import annotations

import pytest
import torch

from monet import ExpertMask
from monet.model.keywords import AttentionKeywords, LanguageModelKeywords
from tests.model.tiny import tiny_model, tokens

MISSPELT = {
    "expert_masks": "expert_mask",
    "attention_masks": "attention_mask",
    "output_router_logits": "output_router_probs",
    "shifted_labels": "shift_labels",
    "output_attention": "output_attentions",
    "past_key_value": "past_key_values",
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_keyword_is_refused(name):
    model = tiny_model()
    with pytest.raises(TypeError, match=f"unknown keyword '{name}'; did you mean '{MISSPELT[name]}'"):
        model(tokens(), **{name: None})
    if name != "shifted_labels":
        with pytest.raises(TypeError, match=f"'{name}'; did you mean '{MISSPELT[name]}'"):
            model.model(tokens(), **{name: None})


def test_a_keyword_like_no_other():
    with pytest.raises(TypeError, match="unknown keyword 'zzz'; use one of attention_mask, block_table, cache, "):
        tiny_model()(tokens(), zzz=1)
    with pytest.raises(TypeError, match="unknown keyword 'shift_labels'"):
        tiny_model().model(tokens(), shift_labels=tokens())


def test_generation_refuses_it_too():
    model, ids = tiny_model(), tokens()
    with pytest.raises(ValueError, match="expert_masks"):
        model.generate(ids, expert_masks=ExpertMask.keep_all(model.config), max_new_tokens=2)


def test_every_listed_keyword_is_taken():
    """This includes keywords that attention on this machine does not read."""
    model = tiny_model()
    wanted = model(tokens()).logits
    values = {name: None for name in LanguageModelKeywords.__optional_keys__}
    assert torch.equal(model(tokens(), **values).logits, wanted)
    assert AttentionKeywords.__optional_keys__ < LanguageModelKeywords.__optional_keys__


def test_token_types_are_ignored():
    """Some tokenizers return them, and `model(**tokenizer(text))` is the usual call."""
    model, ids = tiny_model(), tokens()
    batch = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model(**batch).logits, model(ids).logits)
    got = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(got, model.generate(ids, max_new_tokens=3, do_sample=False))
