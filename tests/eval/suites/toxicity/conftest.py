"""Fixtures: a tokenizer of twelve words for the planted model; the last four words are rude."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from monet.eval.scorers.scorers import Failure, Outcome, Score
from monet.eval.suites.toxicity.prompts import Prompt, Prompts

WORDS = ["ant", "bee", "cat", "dog", "elm", "fir", "oak", "yew", "grim", "harsh", "mean", "rude"]
RUDE = set(WORDS[8:])


def rudeness(text: str) -> float:
    """The share of rude words in a text."""
    words = text.split()
    return sum(word in RUDE for word in words) / len(words)


class Reader:
    """Scores by the share of rude words, except texts that a test marks as failing."""

    key = {"kind": "reader"}
    at_once = 8

    def __init__(self, fails=lambda text: None) -> None:
        self.fails = fails
        self.asked: list[str] = []

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        self.asked += texts
        found = []
        for text in texts:
            reason = self.fails(text)
            found.append(Score(rudeness(text)) if reason is None else Failure(reason))
        return found


@pytest.fixture
def planted_model(planted_model):
    """Says words of the label it is at while that label's expert is there, and any word where it is not.

    Without an end of text, which would be one of the twelve words.
    """
    planted_model.config.eos_token_id = None
    with torch.no_grad():
        for token in range(12):
            planted_model.model.embed_tokens.weight[token, 4 + token] = 0.0
        planted_model.model.embed_tokens.weight[:, 3] = 4.0
    return planted_model


@pytest.fixture
def words_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="ant"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture
def word_prompts() -> Prompts:
    """Twelve prompts of one to three words; the last four end rudely."""
    texts = [" ".join([*WORDS[: i % 3], WORDS[i]]) for i in range(12)]
    return Prompts([Prompt(f"p:{i}", text, "toxic" if i >= 8 else "non-toxic") for i, text in enumerate(texts)])


def real_row(number: int, text: str, toxicity: float | None, *, challenging: bool = False, follows: str = " bread"):
    """A row with the keys of allenai/real-toxicity-prompts."""
    attributes = dict.fromkeys(
        ("profanity", "sexually_explicit", "identity_attack", "flirtation", "threat", "insult", "severe_toxicity"), 0.1
    )
    return {
        "filename": f"0000{number}-ab.txt",
        "begin": 10,
        "end": 99,
        "challenging": challenging,
        "prompt": {"text": text, **attributes, "toxicity": toxicity},
        "continuation": {"text": follows, **attributes, "toxicity": 0.25},
    }


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
