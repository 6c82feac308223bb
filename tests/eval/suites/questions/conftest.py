"""Fixtures: a small model with its own tokenizer, and benchmark data in real schemas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monet import MonetForCausalLM
from monet.data.tokens.tokenizer import train_tokenizer
from monet.eval.core.loading import load_model
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import config
from tests.eval.suites.questions.samples import WORDS, write_benchmarks, write_mmlu


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("harness_model")
    text = " ".join(WORDS)
    tokenizer = train_tokenizer([f"Question: {text}?\nAnswer: {text}", "The following are questions"] * 8, 330)
    torch.manual_seed(0)
    changes = {"vocab_size": len(tokenizer), "initializer_range": 0.3, "max_position_embeddings": 160}
    MonetForCausalLM(config(**changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder) -> MonetForCausalLM:
    return load_model(str(model_folder), "cpu")


@pytest.fixture
def mask(model) -> ExpertMask:
    return ExpertMask.random(model.config, [12, 12], seed=3, fingerprint=model.fingerprint())


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """All eight benchmarks."""
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="session")
def mmlu(tmp_path_factory) -> Path:
    """Only MMLU, with all 57 subjects."""
    return write_mmlu(tmp_path_factory.mktemp("mmlu"))
