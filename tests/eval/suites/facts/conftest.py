"""Fixtures: the planted model with a tokenizer of words, and facts about its labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monet import MonetForCausalLM
from monet.eval.core.loading import load_model
from monet.masks.expert_mask import ExpertMask

# The planted model has twelve tokens, four for each label: an expert of a label makes the label's words more likely.
WORDS = [f"{label}{number}" for label in ("left", "middle", "right") for number in range(4)]
DOMAIN_OF = {"left": "sides", "middle": "centre", "right": "sides"}


def row(label: str, number: int, **changes: Any) -> dict[str, Any]:
    """A line about a label: its words are the prompt and the answer, words of the other labels are wrong."""
    wrong = [f"{other}{number}" for other in ("left", "middle", "right") if other != label]
    return {
        "prompt": f"{label}{number} {label}{(number + 1) % 4}",
        "answer": f"{label}{number}",
        "choices": wrong,
        "domain": DOMAIN_OF[label],
        "relation": label,
        "phrasing": 0,
        "subject": f"{label}{number}",
        **changes,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def all_rows() -> list[dict[str, Any]]:
    """Two phrasings of four facts of each label."""
    return [
        row(label, number, phrasing=phrasing, prompt=f"{label}{number} {label}{(number + 1 + phrasing) % 4}")
        for label in ("left", "middle", "right")
        for number in range(4)
        for phrasing in range(2)
    ]


@pytest.fixture
def facts_file(tmp_path) -> Path:
    return write_rows(tmp_path / "facts.jsonl", all_rows())


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the model's words."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture
def planted_folder(planted_model, tokenizer, tmp_path) -> Path:
    planted_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def planted(planted_folder) -> MonetForCausalLM:
    return load_model(str(planted_folder), "cpu")


@pytest.fixture
def without_label(planted) -> Callable[..., ExpertMask]:
    """A function that makes the mask that removes the expert of a label."""

    def removes(label: int, **about: Any) -> ExpertMask:
        keep_REE = torch.ones(1, 16, 16, dtype=torch.bool)
        keep_REE[0, label, label] = False
        return ExpertMask(keep_REE, **{"provenance": {}, "fingerprint": planted.fingerprint(), **about})

    return removes
