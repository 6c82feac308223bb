"""Tokens before a text in the data are also there in use: export, generation, windows, lm-eval."""

import warnings

import pytest

from monet.convert.export import export
from monet.data.preparation.prepare import prepare
from monet.eval.core.loading import open_windows
from monet.eval.suites.questions.model import MonetLM
from monet.serve.generate import load
from tests.data.tokens.test_tokenizer import like_llama

BOS, EOS = 0, 1


@pytest.fixture
def both(data_dir, tmp_path):
    """Data of a tokenizer that puts <s> before a text by itself, by `add_bos`."""
    tokenizer = str(like_llama(tmp_path / "llama"))
    text = str(data_dir.parent / "text")
    return {
        add_bos: prepare(text, tmp_path / f"bos-{add_bos}", tokenizer=tokenizer, add_bos=add_bos)
        for add_bos in (False, True)
    }


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_model_is_used_with_the_start_of_its_data(train, both, tmp_path, add_bos):
    run = train("run", "--trainer.max_steps=3", f"--data.data_dir={both[add_bos].folder}")
    assert run.code == 0
    export(tmp_path / "out", run=run.run_dir)
    model, tokenizer = load(tmp_path / "out")
    documents = both[add_bos].stream("train", "animals")
    first = documents.read(0, 1).tolist()
    start = [BOS] if add_bos else []
    assert (first == [BOS]) is add_bos
    assert tokenizer("the cat").input_ids == start + tokenizer("the cat", add_special_tokens=False).input_ids

    harness = MonetLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)
    assert harness.tok_encode("the cat") == tokenizer("the cat").input_ids
    assert harness.prefix_token_id == (BOS if add_bos else EOS)

    model.name_or_path = str(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_windows(both[add_bos].folder, "train", model)
    with pytest.warns(UserWarning, match=r"begins a text with no special token; prepare|begins a text with \['<s>'\]"):
        open_windows(both[not add_bos].folder, "train", model)


def test_a_prefix_that_is_asked_for_is_taken(train, both, tmp_path):
    run = train("run", "--trainer.max_steps=3", f"--data.data_dir={both[False].folder}")
    export(tmp_path / "out", run=run.run_dir)
    model, tokenizer = load(tmp_path / "out")
    harness = MonetLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1, prefix_token_id=BOS)
    assert harness.prefix_token_id == BOS
