"""Code in a downloaded folder does not run, even if the user answers yes to every question."""

import ast
import builtins
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from monet.errors import CheckpointError, ConfigError
from monet.eval.choices.scoring import tokenizer_of
from monet.eval.core.loading import own_tokenizer
from monet.eval.scorers.classifier import ClassifierScorer
from monet.serve import generate
from monet.training.module import MonetLightningModule
from monet.training.settings import ModelShape

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "moe_dim": 4,
    "moe_heads": 2, "moe_experts": 4, "moe_topk": 2, "moe_groups": 1, "moe_decompose": "vertical",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Configurations of a model and of a tokenizer that name classes in a file in the same folder."""
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
    return own_tokenizer(SimpleNamespace(name_or_path=str(folder)))  # pyright: ignore[reportArgumentType]


def tokenizer_of_the_harness(folder: Path) -> object:
    return tokenizer_of(SimpleNamespace(name_or_path=str(folder)), None)  # pyright: ignore[reportArgumentType]


def classifier(folder: Path) -> object:
    return ClassifierScorer(str(folder), label=1)


def tokenizer_of_generate(folder: Path) -> object:
    return generate.load(folder)


def tokenizer_of_training_data(folder: Path) -> object:
    module = MonetLightningModule(ModelShape(**SHAPE))
    data = SimpleNamespace(tokenizer_dir=folder)
    module._trainer = SimpleNamespace(datamodule=data, ckpt_path=None, world_size=1)  # pyright: ignore
    return module.setup("fit")


LOADERS = [
    tokenizer_beside_the_model, tokenizer_of_the_harness, classifier, tokenizer_of_generate, tokenizer_of_training_data
]  # fmt: skip


@pytest.mark.parametrize("load", LOADERS)
def test_code_of_a_tokenizer_does_not_run(load, folder):
    with contextlib.suppress(CheckpointError, ConfigError):
        load(folder)
    assert not (folder.parent / "ran").exists()


# These classes are never looked up in a folder's auto_map. `super` and `cls` stand for them in their own methods.
OWN_CLASSES = {"MonetForCausalLM", "MonetConfig", "LlamaForCausalLM", "type(model)"}


def test_every_loader_refuses_foreign_code():
    """Each call of `from_pretrained` uses one of Monet's classes, or has trust_remote_code=False."""
    files = [path for folder in ("monet", "eval", "kernels", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    calls = [
        (path, call)
        for path in [*files, ROOT / "train.py"]
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", None) == "from_pretrained"
    ]
    assert len(calls) >= 6
    for path, call in calls:
        assert isinstance(call.func, ast.Attribute)
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        safe = said.get("trust_remote_code") == "False" or ast.unparse(call.func.value) in OWN_CLASSES
        assert safe, f"{path}:{call.lineno}: say trust_remote_code=False"
