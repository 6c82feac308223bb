"""The paper's domain experiment (section 5.1): remove each MMLU category's experts and ask all categories.

Random controls show what the removal of as many other experts would cost.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monet.errors import ConfigError, DataError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import check_ratio, load_masks
from monet.eval.attribution.statistics.prompt_hashes import mask_notes
from monet.eval.attribution.stats import PERMUTATIONS
from monet.eval.choices.scoring import Outcome, tokenizer_of
from monet.eval.choices.texts import digest_of
from monet.eval.core.achieved import control_notes
from monet.eval.core.announce import announce
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import Condition, conditions, dealt
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.intervention import Intervention, check_all, unit_of
from monet.eval.core.loading import windows_bar
from monet.eval.core.model_origin import about_run
from monet.eval.core.options import DividedCompute, Intervals
from monet.eval.suites.questions.asked import Asked, chosen_elsewhere
from monet.eval.suites.questions.catalog import Metric, Style, benchmarks
from monet.eval.suites.questions.categories import CATEGORIES, CATEGORY_OF
from monet.eval.suites.questions.domains_result import DomainsResult
from monet.eval.suites.questions.domains_verdicts import summarise
from monet.eval.suites.questions.identify import IdentifyOn, Texts, check_categories, held_out_texts, identify
from monet.eval.suites.questions.options import QuestionOptions
from monet.eval.suites.questions.scoring import Scorer, TooLong
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
    """Accuracy in every MMLU category before and after removing each category's units, compared with random removals.

    `out` keeps the outcomes of single questions. A second call with the same model, masks, data and settings reads them
    and gives the same numbers.

    Args:
        model: the complete model: a Monet, or any other causal language model that the masks fit.
        masks: masks by category; None finds a Monet's experts by `identify_on` and `ratio`.
        out: folder for statistics, masks, kept outcomes and result.json.
        data: folder with the data sets (`monet.eval.suites.questions.local_data`); None reads them from the hub or its
            cache.
        identify_on: find experts on MMLU's validation and dev splits, or on the questions that are asked.
        ratio: minimum ratio between an expert's highest and second highest mean weight; the paper's is 2.
        permutations: number of permutations of the categories over the questions that experts are found on; see
            `identify`.
        shots: solved examples before each question.
        style: `cloze` or `letters` (`monet.eval.suites.questions.catalog`).
        metric: accuracy that counts: by log-likelihood per character, if the task defines it, or plain.
        controls: random controls of each mask; None takes the default number.
        control_on: ask controls about their target only, or about all categories (slower by the number of categories).
        limit: at most this many questions per subject, the first ones; also applies to finding experts.
        faults: `count` rows that cannot be asked and missing subjects, or `refuse` them.
        too_long: `cut` prompts longer than the model's context from the left, or `skip` them; both are counted in the
            result.
        tokenizer: folder or name of another tokenizer than the model's.
        bootstrap: settings of the bootstrap, which resamples questions.
        batch_size: options per forward.
        part: share of the conditions to compute and keep; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None if a part is given.

    Raises:
        ConfigError: an option is out of range, there is no control, or lm-eval is missing.
        DataError: there are no data or fewer than two categories, a subject is unknown, the masks are for something
            other than categories, or the masks are of several kinds.
        CheckpointError: a mask belongs to another model, or there is no tokenizer.
        NonFiniteError: a log-likelihood is NaN or infinite.
    """
    bootstrap = bootstrap or Bootstrap()
    check_ratio(ratio)
    controls = controls or Controls()
    if not controls.count:
        raise ConfigError("controls.count = 0: a removal is judged against random controls; set it to at least 1")
    (mmlu,) = benchmarks(style, ["MMLU"])
    tasks, missing = load_tasks(mmlu.tasks, shots, data=data, limit=limit, faults=faults)
    asked = _by_category(tasks, missing)
    if len(asked) < 2:
        raise DataError(
            f"the data hold only questions of {[part.name for part in asked]}; a removal is judged against other "
            "categories, so at least two categories are needed; add the data of another one"
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
        **about_run(model),
        "masks": mask_notes(masks),
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
    """The questions that are asked, to find experts on; the paper seems to do the same."""
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
    """Remove the experts of each of MMLU's 14 categories and measure the loss in every category, with random controls.

    The command finds experts by routing MMLU's validation and dev questions, and judges masks by its test questions. It
    writes OUT/result.json, which `monet report` turns into tables and a heat map, and the masks to OUT/masks. It keeps
    each question's outcome in OUT/outcomes, so the same command continues after a kill.

    Args:
        model: a Monet model: a Hugging Face folder or a name on the hub.
        out: folder for result.json, masks, statistics and kept outcomes.
        masks: folder of `monet select` with masks of categories, or one mask file in it; if omitted, the command finds
            the masks itself.
        identify_on: find experts on held-out questions (validation and dev), or on the questions that are asked, as the
            paper seems to do.
        ratio: minimum ratio between an expert's highest and second highest mean weight, at least 1; the paper's is 2.
        permutations: look for experts this many more times, with the categories shuffled over the questions; the report
            says how many experts are found by chance. 0 turns this off.
        shots: solved examples before each question.
        controls: random controls of each mask.
        control_on: ask controls about their target only, or about all categories, which takes that many times longer.

    Raises:
        CheckpointError: there is no such model or no tokenizer, or masks belong to another model.
        ConfigError: an option is out of range, or lm-eval is missing.
        DataError: there are no data, a subject is unknown, or masks are for something other than categories.
        NonFiniteError: a log-likelihood is NaN or infinite.
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
    announce(result, out)
