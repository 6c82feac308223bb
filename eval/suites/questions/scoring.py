"""Scores questions with the harness's model under conditions, and turns outcomes into right and wrong answers."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from monet.eval.choices.scoring import ChoiceScorer, Outcome
from monet.eval.suites.questions.sources import quiet_harness
from monet.eval.suites.questions.tasks import Question, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from monet.eval.suites.questions.model import PairLM

TooLong = Literal["cut", "skip"]


class Scorer(ChoiceScorer[Question]):
    """Scores questions with one model through lm-evaluation-harness, and keeps the outcomes.

    Args:
        model: a Monet, or any other causal language model of transformers, on its device; no mask may be applied.
        tokenizer: tokenizer of the model.
        folder: folder that keeps outcomes.
        batch_size: continuations per forward.
        too_long: `cut` drops the beginning of a prompt that does not fit into the context, as the harness does, and
            counts the question; `skip` gives it no score.

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

        super().__init__(model, tokenizer, folder, batch_size)
        self.too_long = too_long
        with quiet_harness():
            self.lm: PairLM = PairLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.settings |= {
            "suite": "harness/1",
            "max_length": self.lm.max_length,
            "too_long": too_long,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def fingerprint(self, questions: Sequence[Question]) -> str:
        return fingerprint(questions)

    def characters(self, question: Question) -> int:
        return max(len(context) + len(continuation) for context, continuation in question.pairs)

    def around(self) -> AbstractContextManager[Any]:
        return quiet_harness()  # it warns about every cut prompt; cut prompts are counted here

    def score(self, questions: Sequence[Question]) -> list[Outcome]:
        pairs = [pair for question in questions for pair in question.pairs]
        scores = iter(self.lm.score_pairs(pairs, cut=self.too_long == "cut"))
        found = []
        for question in questions:
            own = [next(scores) for _ in question.pairs]
            values = [score.log_likelihood for score in own if score.log_likelihood is not None]
            if len(values) == len(own):
                greedy = own[0].greedy if len(own) == 1 else None
                found.append(Outcome(tuple(values), max(score.cut for score in own), greedy=greedy))
            else:
                reason = next(score.reason for score in own if score.log_likelihood is None)
                found.append(Outcome(None, reason=reason))
        return found


def correct(questions: Sequence[Question], outcomes: Sequence[Outcome], normalised: bool) -> NDArray[np.float64]:
    """Whether the right option is the likeliest, 1.0 or 0.0; NaN if the question has no score.

    A question with a single option is right if the option is what greedy decoding gives.

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
            likeliest = int(np.argmax(values)) == question.answer
            found[number] = float(likeliest if outcome.greedy is None else outcome.greedy)
    return found
