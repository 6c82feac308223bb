"""Log-likelihoods of the answers to a prompt, exact at the boundary between prompt and answer.

The prompt is tokenized without and with each option. Tokens at the beginning that the prompt and all its options have
in common are the condition, and all later tokens are scored. So a token that spans the boundary is scored with the
option, and all options to one prompt are scored from the same place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from monet.errors import NonFiniteError
from monet.eval.choices.scoring import ChoiceScorer, Outcome
from monet.eval.suites.facts.read import Question, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """The options of one question as token ids.

    Args:
        options: for every option, the ids of the prompt with the option.
        start: index of the first scored token, the same for all options.
        reason: why the question has no score; empty if it has one.
    """

    options: list[list[int]]
    start: int
    reason: str = ""


class FactScorer(ChoiceScorer[Question]):
    """Scores the options of facts, and keeps the outcomes. Arguments and errors as in the base class."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str], batch_size: int = 8
    ) -> None:
        super().__init__(model, tokenizer, folder, batch_size)
        self.max_length = int(model.config.max_position_embeddings)
        self.settings |= {"suite": "facts/1", "max_length": self.max_length}

    def fingerprint(self, questions: Sequence[Question]) -> str:
        return fingerprint(questions)

    def characters(self, question: Question) -> int:
        return len(question.prompt) + max(map(len, question.options))

    def score(self, questions: Sequence[Question]) -> list[Outcome]:
        encoded = encode(self.tokenizer, questions, self.max_length)
        scored = [number for number, one in enumerate(encoded) if not one.reason]
        values = log_likelihoods(self.model, [encoded[number] for number in scored], self.batch_size)
        found = [Outcome(None, reason=one.reason) for one in encoded]
        for number, own in zip(scored, values, strict=True):
            for option, value in zip(questions[number].options, own, strict=True):
                if not abs(value) < float("inf"):
                    raise NonFiniteError(
                        f"log-likelihood {value} of {option!r} after {questions[number].prompt!r}; check the "
                        "checkpoint's weights, or load it as float32"
                    )
            found[number] = Outcome(tuple(own))
        return found


def encode(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], longest: int) -> list[Encoded]:
    """Tokenize questions: each prompt, and each prompt with a space and an option.

    Args:
        tokenizer: the tokenizer; it adds to a text what it adds by default, for example a token that begins the text.
        questions: the questions.
        longest: tokens that the model reads at most.
    """
    texts = [text for one in questions for text in (one.prompt, *(f"{one.prompt} {option}" for option in one.options))]
    ids = iter(_token_ids(tokenizer, texts))
    return [_encoded(next(ids), [next(ids) for _ in one.options], longest) for one in questions]


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of the texts, without tokens that the tokenizer adds at the end of a text."""
    if not texts:
        return []
    plain, added = (cast(list[int], tokenizer(texts[0], add_special_tokens=add)["input_ids"]) for add in (False, True))
    ends = (count for count in range(len(added)) if added[: len(added) - count][-len(plain) :] == plain)
    at_end = next(ends, 0)
    found = cast(list[list[int]], tokenizer(list(texts))["input_ids"])
    return [ids[: len(ids) - at_end] for ids in found]


def _encoded(prompt: list[int], options: list[list[int]], longest: int) -> Encoded:
    start = min(_common(prompt, option) for option in options)
    reason = ""
    if max(map(len, options)) - 1 > longest:
        reason = "longer than the context"
    elif not start:
        reason = "no token of the prompt stays the same with an answer"
    elif any(len(option) == start for option in options) or len(set(map(tuple, options))) < len(options):
        reason = "options with the same tokens"
    return Encoded(options, start, reason)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that two sequences have in common at the beginning."""
    equal = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        equal += 1
    return equal


def log_likelihoods(model: Any, encoded: Sequence[Encoded], batch_size: int) -> list[list[float]]:
    """Log-likelihoods of all options, nats, by question.

    Options whose input is the beginning of another option's input share that row: single-token answers of a question
    need one row together.

    Args:
        model: a causal language model of transformers, in eval mode and without gradients.
        encoded: the questions, without those that have no score.
        batch_size: rows in each forward pass.
    """
    found = [[0.0] * len(one.options) for one in encoded]
    rows = [(number, row) for number, one in enumerate(encoded) for row in _rows(one)]
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        first = min(encoded[number].start for number, _ in batch) - 1
        log_p_BTV = _log_probabilities(model, [ids for _, (ids, _) in batch], first)
        for log_p_TV, (number, (_, served)) in zip(log_p_BTV, batch, strict=True):
            start = encoded[number].start
            for option in served:
                targets_X = torch.tensor(encoded[number].options[option][start:], device=log_p_TV.device)
                own_XV = log_p_TV[start - 1 - first :][: len(targets_X)]
                found[number][option] = float(own_XV.gather(1, targets_X[:, None]).double().sum())
    return found


def _rows(one: Encoded) -> list[tuple[list[int], list[int]]]:
    """The inputs to run for a question, with the numbers of the options that each serves."""
    rows: list[tuple[list[int], list[int]]] = []
    for number in sorted(range(len(one.options)), key=lambda n: (-len(one.options[n]), n)):
        ids = one.options[number][:-1]
        row = next((row for row in rows if row[0][: len(ids)] == ids), None)
        if row is None:
            rows.append((ids, [number]))
        else:
            row[1].append(number)
    return rows


def _log_probabilities(model: Any, rows: Sequence[Sequence[int]], first: int) -> Tensor:
    """Float32 log-probabilities (B, T - first, V) of the next token, at the positions from `first` on."""
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for number, ids in enumerate(rows):
        ids_BT[number, : len(ids)] = torch.tensor(ids)
        mask_BT[number, : len(ids)] = 1
    padding = None if bool(mask_BT.all()) else mask_BT.to(model.device)
    logits_BTV = model(
        input_ids=ids_BT.to(model.device), attention_mask=padding, use_cache=False, logits_to_keep=longest - first
    ).logits
    return logits_BTV.float().log_softmax(-1)
