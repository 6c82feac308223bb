"""The model's own explanations: the prompt holds the mean embedding, and decoding is that of the prompt."""

from __future__ import annotations

import pytest
import torch

from monet.errors import CheckpointError
from monet.eval.explain.excerpts import Excerpts
from monet.eval.explain.itself import PIECES, ModelExplainer


class Tokenizer:
    """Letters as ids; special tokens only where they are asked for."""

    chat_template = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [0] * add_special_tokens + [1 + ord(letter) % 11 for letter in text]}

    def decode(self, ids, skip_special_tokens):
        return 'a  word" and more' if len(ids) else ""


def test_the_word_is_the_mean_embedding_of_the_firing_tokens(planted, planted_model, units):
    excerpts = Excerpts(planted).of(units[1], "explain")
    explainer = ModelExplainer(planted_model, Tokenizer(), tokens=2)
    table = planted_model.get_input_embeddings().weight
    ids = [one.ids[one.center] for one in excerpts]
    most = sorted(set(ids), key=lambda token: (-ids.count(token), ids.index(token)))[:2]
    mean_D = explainer.mean(excerpts)
    assert torch.allclose(mean_D, (table[most[0]] + table[most[1]]) / 2)
    counts = torch.tensor([float(ids.count(token)) for token in most])
    weighted_D = ModelExplainer(planted_model, Tokenizer(), 2, "firings").mean(excerpts)
    assert torch.allclose(weighted_D, counts / counts.sum() @ table[most])
    prompt_TD = explainer.prompt(mean_D)[0]
    first, second = 1 + len(PIECES[0]), 2 + len(PIECES[0]) + len(PIECES[1])
    assert len(prompt_TD) == 3 + sum(map(len, PIECES))
    assert torch.equal(prompt_TD[first], mean_D) and torch.equal(prompt_TD[second], mean_D)
    assert torch.equal(prompt_TD[0], table[0])


def test_the_answer_ends_at_its_quote(planted, planted_model, units):
    planted_model.config.max_position_embeddings = 256
    explainer = ModelExplainer(planted_model, Tokenizer(), new_tokens=3)
    (named,) = explainer.explain([(units[0], Excerpts(planted).of(units[0], "explain"))])
    assert named.text == "a word" and not named.failed and not explainer.is_chat
    with pytest.raises(CheckpointError, match="no tokenizer"):
        ModelExplainer(planted_model, None)
