"""Scores questions under conditions. It keeps every question's outcome, so that a killed evaluation continues."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from monet.errors import CheckpointError, DataError
from monet.eval.core.conditions import Condition
from monet.eval.core.decoding import tokenizer_digest
from monet.eval.core.loading import check_batch_size, evaluating, vocab_size
from monet.eval.core.store import ExampleStore, model_key
from monet.eval.suites.questions.sources import quiet_harness
from monet.eval.suites.questions.tasks import Question, fingerprint
from monet.model.model_tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.eval.suites.questions.model import PairLM

TooLong = Literal["cut", "skip"]
# Number of questions scored together. Groups stay the same after a kill, so that batches and results are bitwise equal.
_BLOCK = 8


@dataclass(frozen=True)
class Outcome:
    """One question under one condition.

    Args:
        log_likelihoods: log-likelihood of every option, nats; None if the question has no score.
        cut: tokens of its prompt that did not fit into the model's context, the maximum over the options.
        reason: why the question has no score.
    """

    log_likelihoods: tuple[float, ...] | None
    cut: int = 0
    reason: str = ""


def tokenizer_of(model: Any, tokenizer: str | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is named, or the one in the model's folder.

    Raises:
        CheckpointError: there is no tokenizer.
        ConfigError: there is only a tokenizer.model, and sentencepiece is not installed.
    """
    try:
        return load_tokenizer(tokenizer or str(model.name_or_path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or name another tokenizer (--tokenizer)") from None


class Scorer:
    """Scores questions with one model, in fixed batches, and keeps the outcomes.

    Args:
        model: a Monet, or any other causal language model of transformers, on its device; no mask may be applied.
        tokenizer: tokenizer of the model.
        folder: folder that keeps outcomes.
        batch_size: continuations per forward.
        too_long: `cut` drops the beginning of a prompt that does not fit into the context, as the harness does, and
            counts the question; `skip` gives it no score.

    Attributes:
        settings: everything that outcomes depend on except the mask and the questions.

    Raises:
        ConfigError: batch_size is below 1, or a mask is applied to the model.
        DataError: the tokenizer has ids that the model has no embedding for.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 8,
        too_long: TooLong = "cut",
    ) -> None:
        from monet.eval.suites.questions.model import PairLM

        check_batch_size(batch_size)
        size, known = len(tokenizer), vocab_size(model)
        if size > known:
            raise DataError(f"the tokenizer has {size} ids, the model embeds {known}; name the model's own tokenizer")
        self.model = model
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.too_long = too_long
        with quiet_harness():
            self.lm: PairLM = PairLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.settings: dict[str, Any] = {
            "suite": "harness/1",
            **model_key(model),
            "tokenizer": tokenizer_digest(tokenizer),
            "max_length": self.lm.max_length,
            "batch_size": batch_size,
            "block": _BLOCK,
            "too_long": too_long,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def outcomes(
        self, questions: Sequence[Question], condition: Condition, advance: Callable[[int], object] = lambda _: None
    ) -> list[Outcome]:
        """Score questions under a condition, or read the kept outcomes.

        Args:
            questions: questions with unique ids.
            condition: condition whose mask is applied.
            advance: called with the number of questions done since the last call.

        Returns:
            One outcome per question, in their order.

        Raises:
            CheckpointError: the mask belongs to another model.
            NonFiniteError: a log-likelihood is NaN or infinite.
        """
        key = {**self.settings, "questions": fingerprint(questions)}
        mask = condition.mask
        # Questions of equal length go together, the longest first, so that memory runs out at once or never.
        order = sorted(range(len(questions)), key=lambda i: (-_characters(questions[i]), questions[i].id))
        step = _BLOCK * self.batch_size
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(ExampleStore(self.folder, key, mask, wait=True))
            stack.enter_context(evaluating(self.model))
            stack.enter_context(quiet_harness())  # it warns about every cut prompt; cut prompts are counted here
            if mask is not None:
                stack.enter_context(mask.applied_to(self.model))
            for start in range(0, len(order), step):
                block = [questions[i] for i in order[start : start + step]]
                if not all(question.id in store for question in block):
                    for question, outcome in zip(block, self._score(block), strict=True):
                        if question.id not in store:
                            store.put(question.id, outcome)
                advance(len(block))
            return [_outcome(store[question.id]) for question in questions]

    def _score(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        pairs = [pair for question in questions for pair in question.pairs]
        scores = iter(self.lm.score_pairs(pairs, cut=self.too_long == "cut"))
        found = []
        for question in questions:
            own = [next(scores) for _ in question.pairs]
            reason = next((score.reason for score in own if score.log_likelihood is None), None)
            if reason is None:
                found.append({"ll": [score.log_likelihood for score in own], "cut": max(score.cut for score in own)})
            else:
                found.append({"reason": reason})
        return found


def _characters(question: Question) -> int:
    return max(len(context) + len(continuation) for context, continuation in question.pairs)


def _outcome(kept: Mapping[str, Any]) -> Outcome:
    if "reason" in kept:
        return Outcome(None, reason=kept["reason"])
    return Outcome(tuple(kept["ll"]), kept["cut"])


def correct(questions: Sequence[Question], outcomes: Sequence[Outcome], normalised: bool) -> NDArray[np.float64]:
    """Whether the right option is the likeliest, 1.0 or 0.0; NaN if the question has no score.

    Args:
        questions: the asked questions.
        outcomes: one outcome per question.
        normalised: divide each log-likelihood by the option's number of characters first (the harness's acc_norm).
    """
    found = np.full(len(questions), np.nan)
    for number, (question, outcome) in enumerate(zip(questions, outcomes, strict=True)):
        if outcome.log_likelihoods is not None:
            values = np.array(outcome.log_likelihoods)
            if normalised:
                values = values / np.array(question.lengths, dtype=np.float64)
            found[number] = float(int(np.argmax(values)) == question.answer)
    return found


def log_probability(questions: Sequence[Question], outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Log-probability of the right option among a question's options, nats; NaN if it has no score.

    Unlike accuracy, it moves with every change of the model, so it shows losses even when there are few questions.

    Args:
        questions: the asked questions.
        outcomes: one outcome per question.
    """
    found = np.full(len(questions), np.nan)
    for number, (question, outcome) in enumerate(zip(questions, outcomes, strict=True)):
        if outcome.log_likelihoods is not None:
            values = np.array(outcome.log_likelihoods)
            found[number] = values[question.answer] - np.logaddexp.reduce(values)
    return found
