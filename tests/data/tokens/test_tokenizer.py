"""The trained tokenizer loses nothing, special strings stay text, and large vocabularies get wide ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from monet.data.preparation.prepare import prepare
from monet.data.storage.shards import dtype_for
from monet.data.tokens.tokenizer import Encoder, load_tokenizer, train_tokenizer
from monet.errors import ConfigError
from tests.data.samples import SENTENCES, write_corpus
from tests.data.tokens.test_fidelity import like_llama as of_sentencepiece
from tests.data.tokens.test_fidelity import saved, unigram

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


def like_llama(folder: Path) -> Path:
    """A tokenizer that puts <s> before a text, of a class that transformers rebuilds when it loads it."""
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    return folder


CLASSES = [
    ("bytes", "LlamaTokenizer"), ("bytes", "GPT2Tokenizer"), ("sentencepiece", "LlamaTokenizer"),
    ("sentencepiece", "LlamaTokenizerFast"), ("sentencepiece", "Qwen2Tokenizer"), ("unigram", "T5Tokenizer"),
    ("unigram", "XLMRobertaTokenizer"), ("unigram", "LlamaTokenizer"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "cls"), CLASSES)
def test_ids_are_those_of_the_file_whatever_class_is_named(tmp_path, kind, cls):
    folder = tmp_path / "tokenizer"
    if kind == "bytes":
        like_llama(folder)
    else:
        saved(folder, {"sentencepiece": of_sentencepiece, "unigram": unigram}[kind](), "</s>", unk_token="<unk>")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": cls}))
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.encode_special_tokens = True
    loaded = Encoder(load_tokenizer(str(folder)))
    for text in (" leading space", "naïve ﬁ Å é 😀", "a\tb\r\nc", "<s> two  spaces </s>", "▁under"):
        assert loaded([text])[0][:-1] == raw.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_stored_tokenizer_begins_a_text_as_the_data_do(tmp_path, capsys, add_bos):
    corpus = write_corpus(tmp_path / "in", originals=8)
    source = like_llama(tmp_path / "llama")
    made = prepare(str(corpus), tmp_path / "out", tokenizer=str(source), add_bos=add_bos)
    stored = AutoTokenizer.from_pretrained(made.tokenizer_dir)
    ids = made.stream("train", "python").read(0, 1).tolist()
    assert (ids == [0]) == add_bos
    assert (stored("the bridge").input_ids[0] == 0) == add_bos
    config = json.loads((made.tokenizer_dir / "tokenizer_config.json").read_text())
    assert (config.get("add_bos_token", add_bos), "note: the tokenizer puts <s>" in capsys.readouterr().out) == (
        add_bos,
        not add_bos,
    )
    assert made.manifest.get("notes", []) == ([] if add_bos else made.manifest["notes"])


def test_a_trained_tokenizer_puts_bos_where_the_data_have_it(tmp_path):
    made = prepare(str(write_corpus(tmp_path / "in", originals=8)), tmp_path / "out", vocab_size=270, add_bos=True)
    assert AutoTokenizer.from_pretrained(made.tokenizer_dir)("the").input_ids[0] == 0
