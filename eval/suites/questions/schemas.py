"""Reads the rows of multiple-choice data sets: question, options and answer, and the rows that cannot be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monet.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Schema:
    """How to read one data set's rows, in the form the Hugging Face hub has them.

    Args:
        fields: columns that must be present.
        question: the question's text, without the options.
        options: texts to choose from.
        answer: index of the right option; raises ValueError, IndexError or TypeError if there is none.
        num_options: how many options a row must have; None takes two or more. With one, the model must find the
            option by itself.
        identity: a row's own id, if the data set has ids.
    """

    fields: tuple[str, ...]
    question: Callable[[Row], str]
    options: Callable[[Row], Sequence[str]]
    answer: Callable[[Row], int]
    num_options: int | None = None
    identity: Callable[[Row], str] | None = None


def _answer_key(row: Row) -> int:
    return list(row["choices"]["label"]).index(str(row["answerKey"]).strip())


def _labelled(question: str, num_options: int | None = None) -> Schema:
    """The schema of ARC, OpenBookQA and CommonsenseQA."""
    return Schema(
        fields=("id", question, "choices", "answerKey"),
        question=lambda row: row[question],
        options=lambda row: row["choices"]["text"],
        answer=_answer_key,
        num_options=num_options,
        identity=lambda row: row["id"],
    )


def _blank(row: Row) -> str:
    """The sentence of a WinoGrande row; a row without a blank asks nothing."""
    sentence = row["sentence"]
    return sentence if "_" in sentence else ""


def _without_last_word(row: Row) -> str:
    return row["text"].rpartition(" ")[0]


SCHEMAS: dict[str, Schema] = {
    "lambada": Schema(
        ("text",),
        _without_last_word,
        lambda row: [row["text"].rpartition(" ")[2]],
        lambda row: 0,
        num_options=1,
    ),
    "mmlu": Schema(
        ("question", "choices", "answer"),
        lambda row: row["question"],
        lambda row: row["choices"],
        lambda row: int(row["answer"]),
        num_options=4,
    ),
    "arc": _labelled("question"),
    "openbookqa": _labelled("question_stem", 4),
    "commonsense_qa": _labelled("question", 5),
    "winogrande": Schema(
        ("sentence", "option1", "option2", "answer"),
        _blank,
        lambda row: [row["option1"], row["option2"]],
        lambda row: int(row["answer"]) - 1,
        num_options=2,
    ),
    "piqa": Schema(
        ("goal", "sol1", "sol2", "label"),
        lambda row: row["goal"],
        lambda row: [row["sol1"], row["sol2"]],
        lambda row: int(row["label"]),
        num_options=2,
    ),
    "sciq": Schema(
        ("question", "distractor1", "distractor2", "distractor3", "correct_answer"),
        lambda row: row["question"],
        lambda row: [row[name] for name in ("distractor1", "distractor2", "distractor3", "correct_answer")],
        lambda row: 3,
        num_options=4,
    ),
    "siqa": Schema(
        ("context", "question", "answerA", "answerB", "answerC", "label"),
        lambda row: f"{row['context']} {row['question']}" if row["context"] and row["question"] else "",
        lambda row: [row["answerA"], row["answerB"], row["answerC"]],
        lambda row: int(row["label"]) - 1,
        num_options=3,
    ),
    "hellaswag": Schema(
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        lambda row: row["ctx_a"] + " " + row["ctx_b"],
        lambda row: row["endings"],
        lambda row: int(row["label"]),
        num_options=4,
    ),
}


@dataclass
class Screening:
    """The rows of one split that can be asked, and counts by reason of those that cannot.

    Args:
        kept: numbers of the rows that can be asked, ascending.
        rows: number of rows.
        skipped: number of rows that cannot be asked, by reason.
        examples: the first row number of each reason.
    """

    kept: list[int] = field(default_factory=list)
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """A sentence with the counts, e.g. "2 with a missing option (first: row 17)"."""
        return ", ".join(
            f"{n} with {reason} (first: row {self.examples[reason]})" for reason, n in self.skipped.items()
        )


def screen(rows: Sequence[Row], schema: Schema, columns: Sequence[str], name: str) -> Screening:
    """Sort out rows that cannot be asked.

    Args:
        rows: rows of one split.
        schema: how to read them.
        columns: names of the present columns.
        name: name of the data set and split, for messages.

    Raises:
        DataError: a column that the schema needs is missing.
    """
    if missing := [column for column in schema.fields if column not in columns]:
        raise DataError(f"{name}: no column {', '.join(map(repr, missing))}; its columns are {list(columns)}")
    found = Screening(rows=len(rows))
    seen: set[str] = set()
    for number, row in enumerate(rows):
        reason = _fault(row, schema)
        if reason is None and schema.identity is not None:
            identity = str(schema.identity(row))
            reason = "an id that occurred before" if identity in seen else None
            seen.add(identity)
        if reason is None:
            found.kept.append(number)
        else:
            found.skipped[reason] += 1
            found.examples.setdefault(reason, number)
    return found


def _fault(row: Row, schema: Schema) -> str | None:
    """Why a row cannot be asked; None if it can."""
    try:
        if not schema.question(row).strip():
            return "an empty question"
    except (AttributeError, TypeError):
        return "an empty question"
    try:
        options = list(schema.options(row))
    except (KeyError, TypeError):
        return "a missing option"
    if not all(isinstance(option, str) and option.strip() for option in options):
        return "a missing option"
    if len(options) < 2 if schema.num_options is None else len(options) != schema.num_options:
        return "a missing option" if len(options) < (schema.num_options or 2) else "too many options"
    try:
        in_range = 0 <= schema.answer(row) < len(options)
    except (KeyError, TypeError, ValueError):
        in_range = False
    return None if in_range else "no right answer"
