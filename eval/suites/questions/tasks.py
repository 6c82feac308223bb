"""Makes questions with prompts from the harness's tasks: chooses the split, the rows and the source of examples.

The task objects of lm-evaluation-harness make prompts, few-shot examples and the options' texts. This module chooses
only the rows that they see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monet.errors import ConfigError, DataError
from monet.eval.choices.texts import content_of
from monet.eval.suites.questions.catalog import TaskSpec
from monet.eval.suites.questions.schemas import Screening, screen
from monet.eval.suites.questions.sources import (
    SPLIT_KEYS,
    DataSet,
    nothing_there,
    open_data,
    quiet_harness,
    task_manager,
)

Faults = Literal["count", "refuse"]
_FEWSHOT_SEED = 1234  # the harness's own
SOLVED = "a question solved in its own prompt"


@dataclass(frozen=True)
class Question:
    """One question, ready to be scored. With a single option, the model must find it by itself.

    Args:
        id: task and row number in its split, unique.
        pairs: for every option, the text before it and the text whose likelihood is measured.
        answer: index of the right option.
        lengths: number of characters of every option; acc_norm divides log-likelihoods by it.
        text: the question without its prompt and options.
        options: the options' texts.
    """

    id: str
    pairs: tuple[tuple[str, str], ...]
    answer: int
    lengths: tuple[int, ...]
    text: str
    options: tuple[str, ...]

    @property
    def content(self) -> str:
        """A digest that is equal for questions that say the same (`monet.eval.suites.questions.content`)."""
        return content_of(self.text, self.options)


@dataclass(frozen=True)
class LoadedTask:
    """The questions of one task.

    Args:
        spec: the task.
        questions: questions in the order of their split; empty if no row can be asked.
        normalised: whether the task also scores acc_norm.
        split: split that is asked.
        examples_from: split of the few-shot examples; None if there are none.
        source: where the data were read from.
        rows: number of rows in the split.
        skipped: number of rows that are not asked, by reason: faulty rows, and questions that are solved by one of
            their few-shot examples. Rows beyond a limit do not count.
    """

    spec: TaskSpec
    questions: list[Question]
    normalised: bool
    split: str
    examples_from: str | None
    source: str
    rows: int
    skipped: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """A digest that is equal for equal questions with equal prompts."""
        return fingerprint(self.questions)


def fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 over ids, prompts, options and answers."""
    content = [[question.id, question.pairs, question.answer, question.lengths] for question in questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_tasks(
    specs: Sequence[TaskSpec],
    shots: int = 0,
    *,
    data: Path | None = None,
    limit: int | None = None,
    faults: Faults = "count",
) -> tuple[list[LoadedTask], list[str]]:
    """Make the questions of some tasks.

    Args:
        specs: the tasks.
        shots: solved examples before each question.
        data: folder with the data sets (`monet.eval.suites.questions.local_data`); None reads them from the hub or its
            cache.
        limit: at most this many questions per task, the first ones.
        faults: `count` leaves out rows that cannot be asked, questions that are solved in their own prompt, and tasks
            without local data; `refuse` raises.

    Returns:
        The tasks in the order of `specs`, and the names of the tasks without data.

    Raises:
        ConfigError: lm-eval is missing or does not know a task, or `shots` or `limit` is out of range.
        DataError: none of the tasks has data, a data set cannot be read, a needed split is missing, or there is not a
            single question. With `refuse`, a row would be left out.
    """
    if shots < 0 or (limit is not None and limit < 1):
        raise ConfigError(f"shots must be at least 0 and limit at least 1, got shots {shots} and limit {limit}")
    with quiet_harness():
        manager = task_manager(specs)
        loaded: list[LoadedTask] = []
        missing: list[str] = []
        for spec in specs:
            config = {**manager.task_index[spec.harness_name].cfg, **spec.overrides}
            opened = open_data(spec, config, data)
            if opened is None:
                missing.append(spec.name)
                continue
            loaded.append(_load(manager, spec, config, opened, shots, limit, faults))
    if missing and (faults == "refuse" or not loaded):
        raise nothing_there(specs, missing, data)
    if not any(task.questions for task in loaded):
        told = "; ".join(f"{task.rows} rows of {task.spec.name} in {task.source}" for task in loaded[:3])
        raise DataError(f"not a single row can be asked: {told}; faults of the first task: {dict(loaded[0].skipped)}")
    return loaded, missing


def _plan_splits(
    spec: TaskSpec, config: Mapping[str, Any], opened: DataSet, shots: int
) -> tuple[str, str | None, dict[str, str | None]]:
    """Choose the split to ask, the split of the examples, and the changes to the keys of the harness's task.

    The harness's own choice is used if the data have those splits.
    """
    there = {key: config.get(key) if config.get(key) in opened.splits else None for key in SPLIT_KEYS}
    asked = there["test_split"] or there["validation_split"]
    if asked is None:
        wanted = [config[key] for key in ("test_split", "validation_split") if config.get(key)]
        raise DataError(f"{opened.source}: no split {' or '.join(wanted)} to ask; its splits are {opened.splits}")
    examples = None
    if shots:
        own = config.get("fewshot_split")
        if own and own not in opened.splits:
            raise DataError(
                f"{opened.source}: {shots}-shot prompts of {spec.name} take their examples from split {own!r}, which "
                f"is missing; its splits are {opened.splits}"
            )
        examples = own or there["training_split"] or there["validation_split"] or asked
    changed: dict[str, str | None] = {
        key: None for key in SPLIT_KEYS if there[key] is None or there[key] not in (asked, examples)
    }
    changed["fewshot_split"] = config.get("fewshot_split") if shots else None
    changed["test_split"] = there["test_split"]
    if examples == asked and changed["fewshot_split"] != changed["test_split"]:
        # the harness leaves the question itself out of its examples only if both keys name the same split
        changed.update(fewshot_split=asked, test_split=asked)
    return asked, examples, changed


def _load(
    manager: Any,
    spec: TaskSpec,
    config: Mapping[str, Any],
    opened: DataSet,
    shots: int,
    limit: int | None,
    faults: Faults,
) -> LoadedTask:
    import datasets

    asked, examples, changed = _plan_splits(spec, config, opened, shots)
    screened: dict[str, Screening] = {}
    usable = datasets.DatasetDict()
    for split in {asked: None, examples or asked: None}:
        rows: Any = opened.read(split)
        where = f"{opened.source}, split {split!r} of {spec.name}"
        screened[split] = found = screen(list(rows), spec.schema, rows.column_names, where)
        if found.skipped and faults == "refuse":
            raise DataError(f"{where}: {found.sentence}; correct these rows, or count them (--faults count)")
        # One more row is needed if the harness must leave the question itself out.
        needed = shots + (changed["fewshot_split"] == changed["test_split"]) if split == examples else 0
        if len(found.kept) < needed:
            told = f" ({found.sentence})" if found.skipped else ""
            raise DataError(
                f"{where}: {len(found.kept)} of {found.rows} rows can be asked{told}, but {needed} are needed"
            )
        usable[split] = rows if len(found.kept) == found.rows else rows.select(found.kept)
    about = {
        "spec": spec,
        "split": asked,
        "examples_from": examples,
        "source": opened.source,
        "rows": screened[asked].rows,
        "skipped": dict(screened[asked].skipped),
    }
    if not screened[asked].kept:
        return LoadedTask(questions=[], normalised=False, **about)
    overrides = {**spec.overrides, **changed, "custom_dataset": lambda **_: usable, "num_fewshot": shots}
    built = manager.load([{"group": "monet", "task": [{"task": spec.harness_name, **overrides}]}])
    task = built["tasks"][spec.harness_name]
    task.set_fewshot_seed(_FEWSHOT_SEED)
    raw = usable[asked]
    examples_of = _watched(task, spec)
    questions = []
    skipped = screened[asked].skipped
    for number, doc in task.doc_iterator(limit=limit):
        question = _question(spec, task, doc, raw[number], screened[asked].kept[number], shots)
        if question.content in examples_of():
            skipped[SOLVED] += 1
        else:
            questions.append(question)
    if skipped[SOLVED] and faults == "refuse":
        raise DataError(
            f"{opened.source}, split {asked!r} of {spec.name}: {skipped[SOLVED]} with {SOLVED}: the examples come "
            f"from split {examples!r}; remove rows that are in both splits, or count them (--faults count)"
        )
    return LoadedTask(
        questions=questions,
        normalised="acc_norm" in task.aggregation(),
        **{**about, "skipped": dict(+skipped)},
    )


def _watched(task: Any, spec: TaskSpec) -> Callable[[], set[str]]:
    """A function that returns the contents of the examples that the harness last drew for this task."""
    drawn: list[Mapping[str, Any]] = []
    sample = task.sampler.sample

    def watched(*args: Any, **kwargs: Any) -> Sequence[Mapping[str, Any]]:
        drawn[:] = sample(*args, **kwargs)
        return list(drawn)

    task.sampler.sample = watched
    return lambda: {content_of(spec.schema.question(doc), spec.schema.options(doc)) for doc in drawn}


def _question(
    spec: TaskSpec, task: Any, doc: Mapping[str, Any], row: Mapping[str, Any], number: int, shots: int
) -> Question:
    context = task.fewshot_context(doc, num_fewshot=shots, gen_prefix=task.doc_to_prefix(doc))
    requests = task.construct_requests(doc=doc, ctx=context, metadata=(spec.name, number, 1))
    if spec.schema.num_options == 1:
        requests, options, answer = [requests], [task.doc_to_target(doc)], 0
    else:
        options = task.doc_to_choice(doc)
        answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    return Question(
        id=f"{spec.name}/{number}",
        pairs=tuple(request.args for request in requests),
        answer=options.index(answer) if isinstance(answer, str) else int(answer),
        lengths=tuple(map(len, options)),
        text=spec.schema.question(row),
        options=tuple(spec.schema.options(row)),
    )
