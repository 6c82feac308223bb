"""A tiny random LLaMA with the tokenizer of prepared text, and commands that convert it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.conftest import data_dir as data_dir

LAYERS = 4
# Options that make a conversion of the tiny model quick; a step reads 64 tokens.
QUICK: dict[str, Any] = {
    "seq_len": 32, "batch_size": 2, "moe_experts": 8, "moe_heads": 2, "moe_topk": 3, "sample_tokens": 256,
    "tokens": 640, "warmup_steps": 2, "distil_tokens": 0, "report_windows": 2, "precision": "float32", "device": "cpu",
    "progress": "false",
}  # fmt: skip


def llama_config(**changes: Any) -> LlamaConfig:
    keys: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5000.0,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    return LlamaConfig(**{**keys, **changes})


def randomise(model: torch.nn.Module) -> None:
    """Weights of a size at which every layer changes its input visibly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if "norm" in name else noise / weight.shape[-1] ** 0.5)


@pytest.fixture(scope="session")
def dense(tmp_path_factory, data_dir) -> Path:
    """Folder of a dense model of four layers, width 32."""
    folder = tmp_path_factory.mktemp("dense")
    model = LlamaForCausalLM(llama_config())
    randomise(model)
    model.save_pretrained(folder)
    for path in (data_dir / "tokenizer").iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture
def words(dense, data_dir, tmp_path) -> Callable[..., list[str]]:
    """Words of a `monet convert` command line; keywords change options, None leaves one out."""

    def made(**changes: Any) -> list[str]:
        options = {"model": dense, "data": data_dir, "layers": "top:2", "out": tmp_path / "run", **QUICK, **changes}
        return ["convert", *(f"--{name}={value}" for name, value in options.items() if value is not None)]

    return made
