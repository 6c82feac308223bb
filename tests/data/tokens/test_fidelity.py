"""Effects of a tokenizer on text: special ids inside, unknown ids, lost letters, long texts, texts it cannot encode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from monet.data import limits
from monet.data.preparation.prepare import prepare
from monet.data.tokens.text_encoder import TextEncoder
from monet.errors import DataError
from tests.data.samples import SENTENCES, write_corpus

TEXT = "\n\n".join(f"{number}. {text}, naïve ﬁ 日本 é!  Twice." for number, text in enumerate(SENTENCES.values()))
LONG = "\n".join(f"{TEXT} {number}" for number in range(40))


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return made


def like_llama() -> Tokenizer:
    """The whole text is one word, and a space is put before it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"]))
    state = json.loads(made.to_str()) | {"pre_tokenizer": None}
    return Tokenizer.from_str(json.dumps(state))


def unigram() -> Tokenizer:
    """The special tokens are pieces of the model, as in T5."""
    made = Tokenizer(models.Unigram())
    made.normalizer, made.decoder = normalizers.NFKC(), decoders.Metaspace()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator([TEXT], trainer)
    return made


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "the": 2, "river": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def saved(folder: Path, backend: Tokenizer, eos: str, **more: str) -> str:
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **more).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("text", [LONG, LONG.replace("\n", " "), "".join(LONG.split())], ids=["lines", "words", "one"])
@pytest.mark.parametrize("kind", [byte_level, like_llama, unigram, words])
def test_a_long_text_has_the_same_ids_in_pieces(monkeypatch, kind, text):
    encoder = TextEncoder(kind(), [7], 9)
    whole = encoder.plain([text])[0]
    monkeypatch.setattr(limits, "PIECE_CHARACTERS", 500)
    monkeypatch.setattr(limits, "SEARCHED_CHARACTERS", 400)
    assert encoder(["short", text])[1] == [7, *whole, 9]
    if " " in text:
        assert len(list(encoder._pieces(text))) > 10


@pytest.mark.parametrize("processes", [1, 2])
def test_special_ids_inside_a_document_are_refused_or_skipped(tmp_path, processes):
    corpus = write_corpus(tmp_path / "in", originals=8)
    (corpus / "python" / "z.jsonl").write_text('{"text": "stop </s> go"}\n')
    settings = {"tokenizer": saved(tmp_path / "t5", unigram(), "</s>"), "processes": processes}
    with pytest.raises(DataError, match=r"python/z.jsonl:1: token \d+ of the text is '</s>'.*--on_error skip"):
        prepare(str(corpus), tmp_path / "out", **settings)
    made = prepare(str(corpus), tmp_path / "out", **settings, on_error="skip", overwrite=True)
    assert made.manifest["skipped"]["counts"] == {"special token in the text": 1}
    assert sum(made.stream(split, "python").num_documents for split in made.splits) == 16


def test_unknown_ids_and_lost_letters_are_counted(tmp_path, capsys):
    for number in range(4):
        (tmp_path / "in" / "d").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "d" / f"{number}.txt").write_text("the river grün")
    tokenizer = saved(tmp_path / "words", words(), "<eos>", unk_token="<unk>")
    made = prepare(str(tmp_path / "in"), tmp_path / "out", tokenizer=tokenizer)
    counts = {"tokens": 16, "unknown_ids": 4, "sampled_letters": 12, "lost_letters": 4}
    assert made.manifest["fidelity"] == {"d": counts}
    out = capsys.readouterr().out
    assert "4 of 16" in out
    assert "note: domain 'd': 25.0% of the ids are the unknown token, and 33.3% of the letters" in out


def test_a_normaliser_is_no_loss(tmp_path, prepared):
    corpus = write_corpus(tmp_path / "in", originals=8)
    tokenizer = saved(tmp_path / "t5", unigram(), "</s>", unk_token="<unk>")
    found = prepare(str(corpus), tmp_path / "out", tokenizer=tokenizer).manifest["fidelity"]["english"]
    assert (found["unknown_ids"], found["lost_letters"]) == (0, 0)
    assert found["sampled_letters"] > 100


@pytest.mark.parametrize("processes", [1, 2])
def test_a_text_that_cannot_be_encoded_is_named(tmp_path, processes):
    corpus = write_corpus(tmp_path / "in", originals=8)
    broken = Tokenizer(models.WordLevel({"<eos>": 0, "the": 1}, unk_token="<none>"))
    broken.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = saved(tmp_path / "broken", broken, "<eos>")
    with pytest.raises(DataError, match=r"english/part-00.jsonl:1: the tokenizer cannot encode .*UNK"):
        prepare(str(corpus), tmp_path / "out", tokenizer=tokenizer, processes=processes)
