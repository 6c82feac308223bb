"""The paper's domain experiment (section 5.1): remove each MMLU category's experts, ask all of them, with controls."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monet.errors import ConfigError, DataError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import check_ratio, load_masks
from monet.eval.attribution.statistics.prompt_hashes import without_hashes
from monet.eval.attribution.stats import PERMUTATIONS
from monet.eval.core.achieved import control_notes, told
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import PART_DONE, Condition, conditions, dealt
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.intervention import Intervention, check_all, unit_of
from monet.eval.core.loading import provenance_now, windows_bar
from monet.eval.core.model_origin import about_model
from monet.eval.core.options import DividedCompute, Intervals
from monet.eval.core.results import RESULT_NAME
from monet.eval.suites.questions.asked import Asked, chosen_elsewhere
from monet.eval.suites.questions.catalog import Metric, Style, benchmarks
from monet.eval.suites.questions.categories import CATEGORIES, CATEGORY_OF
from monet.eval.suites.questions.content import digest_of
from monet.eval.suites.questions.domains_result import DomainsResult
from monet.eval.suites.questions.domains_verdicts import summarise
from monet.eval.suites.questions.identify import IdentifyOn, Texts, check_categories, held_out_texts, identify
from monet.eval.suites.questions.options import QuestionOptions
from monet.eval.suites.questions.scoring import Outcome, Scorer, TooLong, tokenizer_of
from monet.eval.suites.questions.tasks import Faults, LoadedTask, load_tasks
from monet.model.fingerprint import holds_weights
from monet.parts import Part


def _by_category(tasks: Sequence[LoadedTask], missing: Sequence[str]) -> list[Asked]:
    """The categories that have a question, in the order of the table."""
    found = []
    for category in CATEGORIES:
        own = [task for task in tasks if CATEGORY_OF[str(task.spec.subject)] == category]
        absent = [name for name in missing if CATEGORY_OF[name.removeprefix("mmlu_")] == category]
        if any(task.questions for task in own):
            found.append(Asked(category, own, absent))
    return found


@holds_weights
def evaluate_domains(
    model: Any,
    masks: Mapping[str, Intervention] | None = None,
    *,
    out: str | os.PathLike[str],
    data: Path | None = None,
    identify_on: IdentifyOn = "held_out",
    ratio: float = 2.0,
    permutations: int = PERMUTATIONS,
    shots: int = 0,
    style: Style = "cloze",
    metric: Metric = "acc_norm",
    controls: Controls | None = None,
    control_on: ControlOn = "target",
    limit: int | None = None,
    faults: Faults = "count",
    too_long: TooLong = "cut",
    tokenizer: str | None = None,
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> DomainsResult | None:
    """Accuracy in every MMLU category before and after removing each category's units, beside random removals.

    Outcomes of single questions are kept in `out`; a second call with the same model, masks, data and settings reads
    them and gives the same numbers.

    Args:
        model: the whole model: a Monet, or any other causal language model that the masks fit.
        masks: by category; None finds a Monet's experts by `identify_on` and `ratio`.
        out: folder for statistics, masks, kept outcomes and result.json.
        data: folder with the data sets (`monet.eval.suites.questions.local_data`); None takes them from the hub or its
            cache.
        identify_on: find experts on MMLU's validation and dev splits, or on the same questions that are asked.
        ratio: least ratio between an expert's highest and second highest mean weight; the paper's is 2.
        permutations: permutations of the categories over the questions that experts are found on; see `identify`.
        shots: solved examples before each question.
        style: `cloze` or `letters` (`monet.eval.suites.questions.catalog`).
        metric: which accuracy counts: by log-likelihood a character, where the task defines it, or plain.
        controls: random controls of each mask; None takes the default.
        control_on: ask controls about their target only, or about all categories (dearer by their number).
        limit: at most so many questions a subject, the first ones; holds for finding experts, too.
        faults: `count` rows that cannot be asked and missing subjects, or `refuse`.
        too_long: `cut` prompts longer than the model's context from the left, or `skip` them; both are counted.
        tokenizer: folder or name, if it is not the model's.
        bootstrap: how intervals are made; questions are drawn.
        batch_size: options a forward.
        part: of the conditions, whose outcomes are computed and kept; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None with a part.

    Raises:
        ConfigError: an option out of range, no control, or lm-eval is missing.
        DataError: no data, an unknown subject, fewer than two categories, or masks of something else than categories or
            of several kinds.
        CheckpointError: a mask of another model, or no tokenizer.
        NonFiniteError: a NaN or infinite log-likelihood.
    """
    bootstrap = bootstrap or Bootstrap()
    check_ratio(ratio)
    controls = controls or Controls()
    if not controls.count:
        raise ConfigError("controls.count = 0: a removal is judged beside random controls; ask for at least one")
    (mmlu,) = benchmarks(style, ["MMLU"])
    tasks, missing = load_tasks(mmlu.tasks, shots, data=data, limit=limit, faults=faults)
    asked = _by_category(tasks, missing)
    if len(asked) < 2:
        raise DataError(
            f"questions of {[part.name for part in asked]} alone; removal is judged against other categories, so two "
            "are needed"
        )
    tokens = tokenizer_of(model, tokenizer)
    root = Path(out)
    contents = {question.content for one in asked for question in one.questions}
    found_on: dict[str, Any] = {}
    if masks is None:
        if identify_on == "held_out":
            texts = held_out_texts(mmlu.tasks, data, limit, faults, contents)
        else:
            texts = _same_texts(asked, missing)
        masks, found_on = identify(
            model, tokens, texts, folder=root, ratio=ratio, permutations=permutations, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip
        found_on["identify_on"] = identify_on
    check_categories(masks)
    check_all(masks, model)
    units = unit_of(masks)
    run_under = conditions(masks, controls, digest_of(contents))
    scorer = Scorer(model, tokens, root / "outcomes", batch_size=batch_size, too_long=too_long)

    def measured(condition: Condition, category: Asked) -> bool:
        return condition.control is None or control_on == "all" or condition.label == category.name

    passes = dealt(list(zip(run_under, range(len(run_under)), strict=True)), part)
    outcomes: dict[str, dict[int, list[Outcome]]] = {category.name: {} for category in asked}
    total = sum(len(one.questions) for one in asked for condition, _ in passes if measured(condition, one))
    with windows_bar(total, "", progress, unit="question") as bar:
        for condition, number in passes:
            for category in asked:
                if measured(condition, category):
                    bar.set_description(f"{condition.name}: {category.name}", refresh=False)
                    found = scorer.outcomes(category.questions, condition, bar.update)
                    outcomes[category.name][number] = found
    if part is not None:
        return None
    provenance = {
        **provenance_now(),
        "model": str(model.name_or_path),
        **about_model(model),
        "masks": {label: without_hashes(mask.provenance) for label, mask in masks.items()},
        "identification": found_on,
        "held_out": found_on["identify_on"] == "held_out"
        if found_on
        else chosen_elsewhere(masks, asked, model, tokens),
        "controls": control_notes(controls, run_under, on=control_on),
        "shots": shots,
        "style": style,
        "metric": metric,
        "limit": limit,
        "faults": faults,
        "bootstrap": {**dataclasses.asdict(bootstrap), "unit": "question"},
        "data": {task.spec.name: task.fingerprint for task in tasks},
        "scoring": scorer.settings,
    }
    result = summarise(masks, units, run_under, asked, outcomes, metric, bootstrap, provenance)
    result.save(root)
    return result


def _same_texts(asked: Sequence[Asked], missing: list[str]) -> Texts:
    """The questions that are asked, as the paper's protocol seems to have it."""
    splits = dict.fromkeys(task.split for one in asked for task in one.tasks)
    return Texts({one.name: one.texts for one in asked}, list(splits), {}, missing)


def run(
    model: str,
    out: Path,
    masks: Path | None = None,
    identify_on: IdentifyOn = "held_out",
    ratio: float = 2.0,
    permutations: int = PERMUTATIONS,
    shots: int = 0,
    controls: ControlOptions = ControlOptions(),  # noqa: B008 - frozen
    control_on: ControlOn = "target",
    questions: QuestionOptions = QuestionOptions(),  # noqa: B008 - frozen
    intervals: Intervals = Intervals(),  # noqa: B008 - frozen
    compute: DividedCompute = DividedCompute(),  # noqa: B008 - frozen
) -> None:
    """Remove the experts of each of MMLU's 14 categories and measure what every category loses, with random controls.

    Experts are found by routing MMLU's validation and dev questions, masks are judged by its test questions. Writes
    OUT/result.json, which `monet report` turns into tables and a heat map, and the masks to OUT/masks. Each question's
    outcome is kept in OUT/outcomes, so the same command goes on after a kill.

    Args:
        model: Hugging Face folder or name of a Monet model.
        out: folder for result.json, masks, statistics and kept outcomes.
        masks: folder of `monet select` with masks of categories, or one mask file in it; without it they are found
            here.
        identify_on: find experts on held_out questions (validation and dev), or on the same that are asked, as the
            paper seems to.
        ratio: least ratio between an expert's highest and second highest mean weight, at least 1; the paper's is 2.
        permutations: so many times, also look for experts with the categories shuffled over the questions; the report
            says how many are found there, by chance. 0 looks for none.
        shots: solved examples before each question.
        controls: random controls of each mask.
        control_on: ask controls about their target only, or about all categories, which takes that many times longer.

    Raises:
        CheckpointError: no such model, no tokenizer, or masks of another model.
        ConfigError: an option out of range, or lm-eval is missing.
        DataError: no data, an unknown subject, or masks of something else than categories.
        NonFiniteError: a NaN or infinite log-likelihood.
    """
    bootstrap = intervals.bootstrap()
    part = compute.own_part
    loaded = compute.load(model)
    result = evaluate_domains(
        loaded,
        None if masks is None else load_masks(masks, model=loaded),
        out=out,
        data=questions.local_data,
        identify_on=identify_on,
        ratio=ratio,
        permutations=permutations,
        shots=shots,
        style=questions.style,
        metric=questions.metric,
        controls=controls.open(loaded),
        control_on=control_on,
        limit=questions.limit,
        faults=questions.faults,
        too_long=questions.too_long,
        tokenizer=questions.tokenizer,
        bootstrap=bootstrap,
        batch_size=compute.batch_size,
        part=part,
        progress=compute.progress,
    )
    if result is None:
        print(PART_DONE)
        return
    print(result.sentence, *told(result.provenance), sep="\n")
    print(result.counts)
    print(f"result: {Path(out) / RESULT_NAME}; its tables: monet report --result {out} --out FOLDER")
