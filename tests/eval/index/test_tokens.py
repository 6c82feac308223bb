"""Texts of tokens, also where a character is cut into several tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monet.eval.index.tokens import TokenTexts


def bytewise() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: n for n, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer like that of LLaMA, whose decoder omits the first space of a text."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁school", "of", "▁", "a", "▁a"]
    backend = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(pieces)}, merges=[], byte_fallback=True))
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def test_spaces_of_sentencepiece_stay():
    tokenizer = sentencepiece()
    pieces = ["<s>", "▁the", "▁school", "of", "▁", "a", *(f"<0x{byte:02X}>" for byte in "Ж".encode()), "▁the"]
    found = TokenTexts(tokenizer).texts(tokenizer.convert_tokens_to_ids(pieces))
    assert found == ["<s>", " the", " school", "of", " ", "a", "", "Ж", " the"]


def test_joined_texts_are_the_text():
    tokenizer = bytewise()
    texts = TokenTexts(tokenizer)
    for text in ("plain", "naïve Ж 日本 🙂!", "<b>\u202e\x00"):
        ids = texts.encode(text)
        found = texts.texts(ids)
        assert len(found) == len(ids) == len(text.encode()) and "".join(found) == text
    assert texts.texts(texts.encode("é")) == ["", "é"]


def test_bytes_that_are_no_character_are_shown():
    tokenizer = bytewise()
    texts = TokenTexts(tokenizer)
    ids = texts.encode("Ж")
    found = texts.texts([ids[0], *texts.encode("ab")])
    assert "".join(found) == "\ufffdab" and len(found) == 3
    assert "".join(texts.texts(ids[:1])) == "\ufffd"


def test_ids_are_shown_without_a_tokenizer():
    assert TokenTexts().texts([3, 17]) == ["[3]", "[17]"]
