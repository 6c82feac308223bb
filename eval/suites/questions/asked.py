"""The questions of one benchmark or of one MMLU category, and the counts behind an accuracy over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monet.eval.choices.scoring import Outcome, count_outcomes
from monet.eval.choices.texts import as_sequences
from monet.eval.core.intervention import Intervention
from monet.eval.suites.questions.accuracy import Denominator
from monet.eval.suites.questions.content import as_text, held_out
from monet.eval.suites.questions.tasks import LoadedTask, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Asked:
    """Questions that are counted into one accuracy.

    Args:
        name: name of the benchmark or category.
        tasks: the questions, by task.
        missing: tasks without data.
    """

    name: str
    tasks: list[LoadedTask]
    missing: list[str]

    @property
    def questions(self) -> list[Question]:
        """Questions of all tasks, in the order of the tasks."""
        return [question for task in self.tasks for question in task.questions]

    @property
    def texts(self) -> list[str]:
        """Text of each question and its options, in the form that masks are chosen on."""
        return [as_text(question.text, question.options) for question in self.questions]

    def denominator(self, outcomes: Sequence[Outcome]) -> Denominator:
        """The counts behind an accuracy over these outcomes."""
        unscored, cut = count_outcomes(outcomes)
        unaskable: Counter[str] = Counter()
        for task in self.tasks:
            unaskable.update(task.skipped)
        return Denominator(
            name=self.name,
            rows=sum(task.rows for task in self.tasks),
            unaskable=dict(unaskable),
            asked=len(outcomes),
            unscored=unscored,
            cut=cut,
            missing=self.missing,
            split=", ".join(dict.fromkeys(task.split for task in self.tasks)),
            examples_from=", ".join(dict.fromkeys(task.examples_from for task in self.tasks if task.examples_from)),
            sources=list(dict.fromkeys(task.source for task in self.tasks)),
        )


def chosen_elsewhere(
    masks: Mapping[str, Intervention], asked: Sequence[Asked], model: Any, tokenizer: PreTrainedTokenizerBase
) -> bool | None:
    """Whether the masks were chosen on text without these questions; see `content.held_out`."""
    if not masks:
        return None
    texts = {one.name: one.texts for one in asked}
    sequences, _ = as_sequences(texts, tokenizer, int(model.config.max_position_embeddings))
    return held_out(masks, sequences, {task.split for one in asked for task in one.tasks if task.spec.subject})
