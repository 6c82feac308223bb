"""A folder with only tokenizer.model: its ids are sentencepiece's, and every command accepts it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from monet import MonetForCausalLM
from monet.cli import main
from monet.data.preparation.prepare import prepare
from monet.data.tokens.tokenizer import load_tokenizer as load_data_tokenizer
from monet.errors import CheckpointError, ConfigError
from monet.eval.core.loading import load_model, open_windows, own_tokenizer
from monet.extras import install_command
from monet.model.model_tokenizer import load_tokenizer, vocabulary
from monet.training.language_models import refuse_other_tokenizer
from tests.compat.released import TEXT, write_sentencepiece
from tests.model.tiny import tiny_model

TEXTS = [
    "Hello world", " a space first", "  two", "two  spaces   three", "a tab\tand a line\n x", "\n\n", " ", "x = 1234;",
    "naïve ½ 日本語 🙂", "", "▁", "it ends in spaces  ", TEXT[0], TEXT[1],
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model in the form of the release."""
    pytest.importorskip("sentencepiece")
    pieces = write_sentencepiece(tmp_path)
    changes = {"vocab_size": pieces.get_piece_size(), "max_position_embeddings": 256, "pad_token_id": None}
    tiny_model(**changes).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def pieces(folder) -> Any:
    import sentencepiece  # pyright: ignore[reportMissingImports]

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_ids_and_texts_are_sentencepieces(folder, pieces, tmp_path):
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved"), load_tokenizer(tmp_path / "saved")):
        for text in TEXTS:
            ids = pieces.encode(text)
            assert each(text, add_special_tokens=False).input_ids == ids, text
            assert each(text).input_ids == [1, *ids]
            assert each.decode(ids) == pieces.decode(ids), text
        assert (each.bos_token_id, each.eos_token_id, each.unk_token_id, each.pad_token_id) == (1, 2, 0, None)
        assert each.model_max_length == 2048 and each.padding_side == "left" and each.is_fast
        assert each.decode([1, *pieces.encode("the cat"), 2], skip_special_tokens=True) == "the cat"
    assert tokenizer.name_or_path == str(folder)
    assert vocabulary(folder) == {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}


@pytest.mark.parametrize("legacy", [True, False])
def test_the_text_after_a_special_token(folder, pieces, legacy):
    """A legacy tokenizer adds a space before the text, a newer one does not; tokenizer_config.json says which it is."""
    write_config(folder, legacy=legacy)
    after = [index for index in pieces.encode("[INST]")]
    if not legacy:
        after = pieces.encode("x[INST]")[len(pieces.encode("x")) :]
    assert load_tokenizer(folder)("<s>[INST]", add_special_tokens=False).input_ids == [1, *after]


def test_settings_of_the_files_beside_it_hold(folder, pieces):
    template = "{% for m in messages %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
    write_config(folder, add_bos_token=False, add_eos_token=True, pad_token="<unk>", chat_template=template)
    tokenizer = load_tokenizer(folder)
    assert tokenizer("the cat").input_ids == [*pieces.encode("the cat"), 2] and tokenizer.pad_token_id == 0
    chat = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>[INST] hello [/INST]"


def test_llamas_settings_hold_without_a_file_beside_it(folder, pieces):
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer("the cat").input_ids == [1, *pieces.encode("the cat")]
    assert (tokenizer.eos_token, tokenizer.unk_token) == ("</s>", "<unk>")


def test_generate_takes_the_folder(folder, capsys):
    assert main(["generate", "--model", str(folder), "--prompt", "the cat", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_text_is_prepared_with_it_and_read_back(folder, pieces, tmp_path):
    text = tmp_path / "text" / "animals"
    text.mkdir(parents=True)
    for number in range(8):
        (text / f"{number}.txt").write_text(f"{TEXT[0]} {number}", encoding="utf-8")
    splits = {"train": 0.5, "validation": 0.5}
    prepare(str(tmp_path / "text"), tmp_path / "prepared", tokenizer=str(folder), splits=splits)
    model = load_model(str(folder), "cpu")
    windows = open_windows(tmp_path / "prepared", "train", model, seq_len=8)
    assert windows.num_windows > 0
    tokenizer = load_data_tokenizer(str(tmp_path / "prepared" / "tokenizer"))
    assert tokenizer(" a space first", add_special_tokens=False).input_ids == pieces.encode(" a space first")
    refuse_other_tokenizer(str(folder), tmp_path / "prepared" / "tokenizer")
    other = tmp_path / "other"
    other.mkdir()
    write_sentencepiece(other, vocab_size=380)
    with pytest.raises(ConfigError, match="ids differ"):
        refuse_other_tokenizer(str(other), tmp_path / "prepared" / "tokenizer")


def test_the_evaluations_take_the_folder(folder, pieces):
    pytest.importorskip("lm_eval")
    from monet.eval.choices.scoring import tokenizer_of
    from monet.eval.suites.questions.model import MonetLM

    model = load_model(str(folder), "cpu")
    ids = pieces.encode(" a space first")
    for tokenizer in (own_tokenizer(model), tokenizer_of(model, None)):
        assert tokenizer is not None and tokenizer(" a space first", add_special_tokens=False).input_ids == ids
    lm = MonetLM(pretrained=str(folder), device="cpu")
    assert lm.tokenizer(" a space first", add_special_tokens=False).input_ids == ids


def test_another_kind_of_model_is_refused(folder):
    write_sentencepiece(folder, kind="unigram", vocab_size=400)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a BPE model like LLaMA's"):
        load_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a sentencepiece model"):
        load_tokenizer(folder)


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not looked at")
    install = re.escape(install_command("sentencepiece"))
    model = load_model(str(tmp_path), "cpu")
    for load in (
        load_tokenizer,
        lambda folder: load_data_tokenizer(str(folder)),
        lambda _: own_tokenizer(model),
    ):
        with pytest.raises(ConfigError, match=install):
            load(tmp_path)
    assert main(["generate", "--model", str(tmp_path), "--prompt", "the cat"]) == 2
    assert "pip install 'monet-experts[sentencepiece]'" in " ".join(capsys.readouterr().err.split())
    with pytest.warns(UserWarning, match=install):
        assert vocabulary(tmp_path) is None
    # A tokenizer that cannot be compared does not stop training.
    refuse_other_tokenizer(str(tmp_path), tmp_path / "nothing")


def test_a_tokenizer_json_goes_first(folder, tmp_path):
    """The tokenizers library reads this file directly, without sentencepiece."""
    load_tokenizer(folder).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)
        assert load_tokenizer(folder)("the cat").input_ids[0] == 1


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_the_loaded_model_computes(folder):
    """The tokenizer's ids fit the model's embeddings."""
    ids = load_tokenizer(folder)("Hello world 🙂", return_tensors="pt")["input_ids"]
    assert torch.isfinite(MonetForCausalLM.from_pretrained(folder)(ids).logits).all()
