"""The trained tokenizer loses nothing, special strings stay text, and large vocabularies get wide ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from monet.data.prepare import prepare
from monet.data.shards import dtype_for
from monet.data.tokenizer import Encoder, train_tokenizer
from monet.errors import ConfigError
from tests.data.samples import SENTENCES

TEXTS = [sentence * 3 for sentence in SENTENCES.values()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(tokenizer, text):
    (ids,) = Encoder(tokenizer)([text])
    assert ids[-1] == tokenizer.eos_token_id
    assert max(ids) < 300
    assert tokenizer.decode(ids[:-1]) == text


def test_special_strings_inside_a_text_are_text(tokenizer):
    (ids,) = Encoder(tokenizer, add_bos=True)(["a <eos> b <bos>"])
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:-1])


def test_saved_files_load_with_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return  x , y\n\n\ttab  è"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (0, 1, 2)
    assert len(again) == 300


def test_training_does_not_depend_on_batches(tokenizer):
    assert train_tokenizer(iter(TEXTS), 300).get_vocab() == tokenizer.get_vocab()


def test_bos_needs_a_bos_token(tokenizer, tmp_path):
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    with pytest.raises(ConfigError, match="no bos_token"):
        Encoder(plain, add_bos=True)


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path):
    vocabulary = {"<eos>": 0, "<unk>": 1} | {f"w{number}": number for number in range(2, 70000)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "corpus" / "d").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "corpus" / "d" / f"{number}.txt").write_text("w69999 w5 other")
    shards = prepare(str(tmp_path / "corpus"), tmp_path / "out", tokenizer=str(tmp_path / "tokenizer"))
    assert shards.manifest["dtype"] == "uint32"
    assert shards.stream("train", "d").read(0, 4).tolist() == [69999, 5, 1, 0]


def test_the_smallest_type_that_holds_the_ids():
    assert dtype_for(1 << 16) == np.dtype("<u2")
    assert dtype_for((1 << 16) + 1) == np.dtype("<u4")
