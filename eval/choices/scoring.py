"""Scores questions with options under conditions, and keeps every outcome, so that a killed evaluation continues."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from monet.errors import CheckpointError, DataError
from monet.eval.core.conditions import Condition
from monet.eval.core.decoding import tokenizer_digest
from monet.eval.core.loading import check_batch_size, evaluating, vocab_size
from monet.eval.core.store import ExampleStore, model_key
from monet.model.model_tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Number of questions scored together. Groups stay the same after a kill, so that batches and results are bitwise equal.
BLOCK = 8


@dataclass(frozen=True)
class Outcome:
    """One question under one condition.

    Args:
        log_likelihoods: log-likelihood of every option, nats; None if the question has no score.
        cut: tokens of its prompt that did not fit into the model's context, the maximum over the options.
        reason: why the question has no score.
        greedy: for a question with a single option, whether greedy decoding gives it; else None.
    """

    log_likelihoods: tuple[float, ...] | None
    cut: int = 0
    reason: str = ""
    greedy: bool | None = None


class Choice(Protocol):
    """A question with options, one of which is right."""

    @property
    def id(self) -> str:
        """Name of the question, unique in its suite."""
        ...

    @property
    def answer(self) -> int:
        """Index of the right option."""
        ...


ChoiceT = TypeVar("ChoiceT", bound=Choice)


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


class ChoiceScorer(ABC, Generic[ChoiceT]):
    """Scores questions with one model, in fixed batches, and keeps the outcomes. A suite says how a block is scored.

    Args:
        model: a Monet, or any other causal language model of transformers, on its device; no mask may be applied.
        tokenizer: tokenizer of the model.
        folder: folder that keeps outcomes.
        batch_size: sequences in each forward pass.

    Attributes:
        settings: everything that outcomes depend on except the mask and the questions. A suite adds its own keys.

    Raises:
        ConfigError: batch_size is below 1, or a mask is applied to the model.
        DataError: the tokenizer has ids that the model has no embedding for.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str], batch_size: int
    ) -> None:
        check_batch_size(batch_size)
        size, known = len(tokenizer), vocab_size(model)
        if size > known:
            raise DataError(f"the tokenizer has {size} ids, the model embeds {known}; name the model's own tokenizer")
        self.model = model
        self.tokenizer = tokenizer
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.settings: dict[str, Any] = {
            **model_key(model),
            "tokenizer": tokenizer_digest(tokenizer),
            "batch_size": batch_size,
            "block": BLOCK,
        }

    @abstractmethod
    def score(self, questions: Sequence[ChoiceT]) -> list[Outcome]:
        """Score a block of questions under the mask that is applied: one outcome per question, in their order."""

    @abstractmethod
    def fingerprint(self, questions: Sequence[ChoiceT]) -> str:
        """A digest of everything in the questions that the outcomes depend on, in their order."""

    @abstractmethod
    def characters(self, question: ChoiceT) -> int:
        """Number of characters of the question's longest text. Questions of similar length are scored together."""

    def around(self) -> AbstractContextManager[Any]:
        """A context in which blocks are scored."""
        return contextlib.nullcontext()

    def outcomes(
        self, questions: Sequence[ChoiceT], condition: Condition, advance: Callable[[int], object] = lambda _: None
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
        key = {**self.settings, "questions": self.fingerprint(questions)}
        mask = condition.mask
        # Questions of equal length go together, the longest first, so that memory runs out at once or never.
        order = sorted(range(len(questions)), key=lambda i: (-self.characters(questions[i]), questions[i].id))
        step = BLOCK * self.batch_size
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(ExampleStore(self.folder, key, mask, wait=True))
            stack.enter_context(evaluating(self.model))
            stack.enter_context(self.around())
            if mask is not None:
                stack.enter_context(mask.applied_to(self.model))
            for start in range(0, len(order), step):
                block = [questions[i] for i in order[start : start + step]]
                if not all(question.id in store for question in block):
                    for question, outcome in zip(block, self.score(block), strict=True):
                        if question.id not in store:
                            store.put(question.id, _kept(outcome))
                advance(len(block))
            return [_outcome(store[question.id]) for question in questions]


def _kept(outcome: Outcome) -> dict[str, Any]:
    if outcome.log_likelihoods is None:
        return {"reason": outcome.reason}
    kept = {"ll": list(outcome.log_likelihoods), "cut": outcome.cut}
    return kept if outcome.greedy is None else {**kept, "greedy": outcome.greedy}


def _outcome(kept: Mapping[str, Any]) -> Outcome:
    if "reason" in kept:
        return Outcome(None, reason=kept["reason"])
    return Outcome(tuple(kept["ll"]), kept["cut"], greedy=kept.get("greedy"))


def count_outcomes(outcomes: Sequence[Outcome]) -> tuple[dict[str, int], int]:
    """Count the questions without a score, by reason, and the scored questions whose prompt was cut."""
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.log_likelihoods is None:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    return reasons, sum(outcome.cut > 0 for outcome in outcomes if outcome.log_likelihoods is not None)


def log_probability(questions: Sequence[Choice], outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Log-probability of the right option among a question's options, nats; NaN if it has no score.

    For a single option, it is the log-likelihood.

    Unlike accuracy, it moves with every change of the model, so it shows losses even when there are few questions.

    Args:
        questions: the asked questions.
        outcomes: one outcome per question.
    """
    found = np.full(len(questions), np.nan)
    for number, (question, outcome) in enumerate(zip(questions, outcomes, strict=True)):
        if outcome.log_likelihoods is not None:
            values = np.array(outcome.log_likelihoods)
            others = np.logaddexp.reduce(values) if len(values) > 1 else 0.0
            found[number] = values[question.answer] - others
    return found


def log_odds(questions: Sequence[Choice], outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Log-odds of the right option against the others, nats; NaN if the question has no score.

    They are log p(right) - logsumexp(log p of the other options). They have no bound, so they also show changes of an
    answer that the model is sure of.

    Args:
        questions: the asked questions, each with at least two options.
        outcomes: one outcome per question.
    """
    right_U, others_UK = _apart(questions, outcomes)
    return right_U - np.logaddexp.reduce(others_UK, axis=1)


def likeliest(questions: Sequence[Choice], outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """1.0 where the right option is likelier than every other option, else 0.0; NaN if the question has no score.

    Args:
        questions: the asked questions, each with at least two options.
        outcomes: one outcome per question.
    """
    right_U, others_UK = _apart(questions, outcomes)
    return np.where(np.isnan(right_U), np.nan, right_U > others_UK.max(axis=1))


def _apart(questions: Sequence[Choice], outcomes: Sequence[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-likelihoods of the right option (U), and of all others (U, options), which end with minus infinities."""
    longest = max((len(one.log_likelihoods) for one in outcomes if one.log_likelihoods is not None), default=1)
    right_U = np.full(len(questions), np.nan)
    others_UK = np.full((len(questions), longest), -np.inf)
    for number, (question, outcome) in enumerate(zip(questions, outcomes, strict=True)):
        if outcome.log_likelihoods is not None:
            right_U[number] = outcome.log_likelihoods[question.answer]
            others_UK[number, : len(outcome.log_likelihoods)] = outcome.log_likelihoods
            others_UK[number, question.answer] = -np.inf
    return right_U, others_UK
