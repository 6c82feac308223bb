"""Code that a downloaded folder brings does not run, even if somebody answers yes to every question."""

import builtins
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from monet.errors import CheckpointError
from monet.eval.harness.scoring import tokenizer_of
from monet.eval.loading import load_tokenizer
from monet.eval.toxicity.classifier import ClassifierScorer


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Configurations of a model and of a tokenizer that name classes in a file beside them."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    model = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(model)
    (model / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PreTrainedConfig, PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast): pass\nclass EvilConfig(PreTrainedConfig): model_type = 'evil'\n"
    )
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    return model


def tokenizer_beside_the_model(folder: Path) -> object:
    return load_tokenizer(SimpleNamespace(name_or_path=str(folder)))  # pyright: ignore[reportArgumentType]


def tokenizer_of_the_harness(folder: Path) -> object:
    return tokenizer_of(SimpleNamespace(name_or_path=str(folder)), None)  # pyright: ignore[reportArgumentType]


def classifier(folder: Path) -> object:
    return ClassifierScorer(str(folder), label=1)


@pytest.mark.parametrize("load", [tokenizer_beside_the_model, tokenizer_of_the_harness, classifier])
def test_code_of_a_tokenizer_does_not_run(load, folder):
    with contextlib.suppress(CheckpointError):
        load(folder)
    assert not (folder.parent / "ran").exists()
