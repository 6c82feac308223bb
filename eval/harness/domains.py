"""The paper's domain experiment (section 5.1): remove each MMLU category's experts, ask all of them, with controls."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from monet.errors import ConfigError, DataError
from monet.eval.bootstrap import Bootstrap, Resampled
from monet.eval.conditions import PART_DONE, Condition, conditions, dealt
from monet.eval.harness.accuracy import Denominator, count_outcomes, estimate, mean_of, one_of, resample
from monet.eval.harness.catalog import Style, benchmarks
from monet.eval.harness.categories import CATEGORIES, CATEGORY_OF
from monet.eval.harness.domains_result import Category, DomainsResult, Removal
from monet.eval.harness.general import Metric
from monet.eval.harness.identify import IdentifyOn, Texts, as_text, check_categories, held_out_texts, identify
from monet.eval.harness.scoring import Outcome, Scorer, TooLong, correct, log_probability, tokenizer_of
from monet.eval.harness.tasks import Faults, LoadedTask, Question, load_tasks
from monet.eval.loading import DType, load_model, provenance_now, windows_bar
from monet.eval.results import RESULT_NAME, Estimate
from monet.eval.selection import check_mask, check_ratio, load_masks
from monet.files import atomic_write_json
from monet.fingerprint import hold, holds_weights
from monet.masks import ExpertMask
from monet.parts import Part

if TYPE_CHECKING:
    from monet.modeling_monet import MonetForCausalLM


@dataclasses.dataclass(frozen=True)
class _Asked:
    """One category's questions."""

    name: str
    tasks: list[LoadedTask]
    missing: list[str]

    @property
    def questions(self) -> list[Question]:
        return [question for task in self.tasks for question in task.questions]

    @property
    def normalised(self) -> bool:
        return all(task.normalised for task in self.tasks if task.questions)

    def denominator(self, outcomes: Sequence[Outcome]) -> Denominator:
        unscored, cut = count_outcomes(outcomes)
        unaskable: dict[str, int] = {}
        for task in self.tasks:
            for reason, number in task.skipped.items():
                unaskable[reason] = unaskable.get(reason, 0) + number
        return Denominator(
            name=self.name,
            rows=sum(task.rows for task in self.tasks),
            unaskable=unaskable,
            asked=len(outcomes),
            unscored=unscored,
            cut=cut,
            missing=self.missing,
            split=", ".join(dict.fromkeys(task.split for task in self.tasks)),
            examples_from=", ".join(dict.fromkeys(task.examples_from for task in self.tasks if task.examples_from)),
            sources=list(dict.fromkeys(str(Path(task.source).parent) for task in self.tasks)),
        )


def _by_category(tasks: Sequence[LoadedTask], missing: Sequence[str]) -> list[_Asked]:
    """The categories that have a question, in the order of the table."""
    found = []
    for category in CATEGORIES:
        own = [task for task in tasks if CATEGORY_OF[str(task.spec.subject)] == category]
        absent = [name for name in missing if CATEGORY_OF[name.removeprefix("mmlu_")] == category]
        if any(task.questions for task in own):
            found.append(_Asked(category, own, absent))
    return found


@holds_weights
def evaluate_domains(
    model: MonetForCausalLM,
    masks: Mapping[str, ExpertMask] | None = None,
    *,
    out: str | os.PathLike[str],
    data: Path | None = None,
    identify_on: IdentifyOn = "held_out",
    ratio: float = 2.0,
    shots: int = 0,
    style: Style = "cloze",
    metric: Metric = "acc_norm",
    random_seeds: Sequence[int] = (0, 1, 2),
    random_on: Literal["all", "target"] = "target",
    limit: int | None = None,
    faults: Faults = "count",
    too_long: TooLong = "cut",
    tokenizer: str | None = None,
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> DomainsResult | None:
    """Accuracy in every MMLU category before and after removing each category's experts, beside random removals.

    Outcomes of single questions are kept in `out`; a second call with the same model, masks, data and settings reads
    them and gives the same numbers.

    Args:
        model: the whole model.
        masks: by category; None finds them by `identify_on` and `ratio`.
        out: folder for statistics, masks, kept outcomes and result.json.
        data: folder with the data sets (`monet.eval.harness.local_data`); None takes them from the hub or its cache.
        identify_on: find experts on MMLU's validation and dev splits, or on the same questions that are asked.
        ratio: least ratio between an expert's highest and second highest mean weight; the paper's is 2.
        shots: solved examples before each question.
        style: `cloze` or `letters` (`monet.eval.harness.catalog`).
        metric: which accuracy counts: by log-likelihood a character, where the task defines it, or plain.
        random_seeds: one random mask a category and seed, of as many experts of every routing group.
        random_on: ask random masks all categories, or their target only, which is cheaper.
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
        ConfigError: an option out of range, no random seed, or lm-eval is missing.
        DataError: no data, an unknown subject, fewer than two categories, or a mask of something else.
        CheckpointError: a mask of another model, or no tokenizer.
        NonFiniteError: a NaN or infinite log-likelihood.
    """
    bootstrap = bootstrap or Bootstrap()
    check_ratio(ratio)
    if not random_seeds:
        raise ConfigError("random_seeds must name at least one seed; a removal is judged beside random ones")
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
    found_on: dict[str, Any] = {}
    if masks is None:
        if identify_on == "held_out":
            texts = held_out_texts(mmlu.tasks, data, limit, faults)
        else:
            texts = _same_texts(asked, missing)
        masks, found_on = identify(
            model, tokens, texts, folder=root, ratio=ratio, batch_size=batch_size, progress=progress
        )
        found_on["identify_on"] = identify_on
    check_categories(masks)
    for label, mask in masks.items():
        check_mask(label, mask, model)
    run_under = conditions(masks, random_seeds)
    scorer = Scorer(model, tokens, root / "outcomes", batch_size=batch_size, too_long=too_long)

    def measured(condition: Condition, category: _Asked) -> bool:
        return condition.seed is None or random_on == "all" or condition.label == category.name

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
        "model_fingerprint": model.fingerprint(),
        "masks": {label: mask.provenance for label, mask in masks.items()},
        "identification": found_on,
        "random_seeds": list(random_seeds),
        "random_on": random_on,
        "shots": shots,
        "style": style,
        "metric": metric,
        "limit": limit,
        "faults": faults,
        "bootstrap": {**dataclasses.asdict(bootstrap), "unit": "question"},
        "data": {task.spec.name: task.fingerprint for task in tasks},
        "scoring": scorer.settings,
    }
    result = _summarise(masks, run_under, asked, outcomes, metric, bootstrap, provenance)
    atomic_write_json(root / RESULT_NAME, result.to_json())
    return result


def _same_texts(asked: Sequence[_Asked], missing: list[str]) -> Texts:
    """The questions that are asked, as the paper's protocol seems to have it."""
    texts = {part.name: [as_text(question.text, question.options) for question in part.questions] for part in asked}
    return Texts(texts, list(dict.fromkeys(task.split for part in asked for task in part.tasks)), {}, missing)


def _summarise(
    masks: Mapping[str, ExpertMask],
    run_under: Sequence[Condition],
    asked: Sequence[_Asked],
    outcomes: Mapping[str, Mapping[int, list[Outcome]]],
    metric: Metric,
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> DomainsResult:
    drawn: dict[str, Resampled] = {}
    surer: dict[str, Resampled] = {}
    place: dict[str, dict[int, int]] = {}
    for part in asked:
        kept = outcomes[part.name]
        normalised = metric == "acc_norm" and part.normalised
        correct_CU = np.stack([correct(part.questions, found, normalised) for found in kept.values()])
        drawn[part.name] = resample(part.name, correct_CU, bootstrap)
        log_p_CU = np.stack([log_probability(part.questions, found) for found in kept.values()])
        surer[part.name] = resample(part.name, log_p_CU, bootstrap)
        place[part.name] = {number: row for row, number in enumerate(kept)}

    def delta(number: int, name: str) -> Estimate:
        return estimate(drawn[name], place[name][number], bootstrap, against=0)

    def random(label: str, name: str) -> Estimate | None:
        numbers = [n for n, c in enumerate(run_under) if c.label == label and c.seed is not None]
        rows = [place[name][number] for number in numbers if number in place[name]]
        return one_of(drawn[name], rows, bootstrap, against=0) if rows else None

    def removal(label: str, mask: ExpertMask) -> Removal:
        number = next((n for n, c in enumerate(run_under) if c.label == label and c.seed is None), 0)
        names = [part.name for part in asked]
        others = [name for name in names if name != label]
        changes = [_difference(drawn[name], place[name][number]) for name in others]
        has_target = label in drawn
        zero = Estimate(0.0, 0.0, 0.0)
        seeds = [n for n, c in enumerate(run_under) if c.label == label and c.seed is not None]
        return Removal(
            name=label,
            experts=mask.num_removed,
            experts_per_group=mask.removed_per_group,
            share=mask.num_removed / mask.num_experts,
            delta=[delta(number, name) for name in names],
            log_probability=[estimate(surer[n], place[n][number], bootstrap, against=0) for n in names],
            random=[random(label, name) if mask.num_removed else zero for name in names],
            target=delta(number, label) if has_target else None,
            others_mean=estimate(mean_of(changes), 0, bootstrap),
            random_target=(random(label, label) if mask.num_removed else zero) if has_target else None,
            random_per_seed=[delta(n, label).value for n in seeds] if has_target else [],
        )

    return DomainsResult(
        categories=[
            Category(part.name, estimate(drawn[part.name], 0, bootstrap), part.denominator(outcomes[part.name][0]))
            for part in asked
        ],
        without_questions=[name for name in CATEGORIES if name not in drawn],
        without_masks=[name for name in CATEGORIES if provenance["identification"] and name not in masks],
        removals=[removal(label, mask) for label, mask in masks.items()],
        metric=metric,
        provenance=provenance,
    )


def _difference(found: Resampled, row: int) -> Resampled:
    """Change against no mask, as a single column."""
    return Resampled(found.mean_C[[row]] - found.mean_C[[0]], found.draws_QC[:, [row]] - found.draws_QC[:, [0]])


def run(
    model: str,
    out: Path,
    masks: Path | None = None,
    local_data: Path | None = None,
    identify_on: IdentifyOn = "held_out",
    ratio: float = 2.0,
    shots: int = 0,
    style: Style = "cloze",
    metric: Metric = "acc_norm",
    random_seeds: list[int] = [0, 1, 2],  # noqa: B006 - shown in --help, never changed
    random_on: Literal["all", "target"] = "target",
    limit: int | None = None,
    faults: Faults = "count",
    too_long: TooLong = "cut",
    tokenizer: str | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 8,
    part: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    progress: bool = True,
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
        local_data: folder with MMLU as the hub has it (jsonl, parquet, arrow); without it the hub is asked.
        identify_on: find experts on held_out questions (validation and dev), or on the same that are asked, as the
            paper seems to.
        ratio: least ratio between an expert's highest and second highest mean weight, at least 1; the paper's is 2.
        shots: solved examples before each question.
        style: cloze scores the text of every option; letters has questions answered by a letter.
        metric: acc_norm divides log-likelihoods by the option's characters in cloze style; acc does not.
        random_seeds: one random mask per category and seed, of as many experts of every routing group.
        random_on: ask random masks all categories, or their target only, which is cheaper.
        limit: questions a subject, the first ones, for finding experts and for asking; for a quick look.
        faults: count rows that cannot be asked and subjects that are missing, or refuse them.
        too_long: cut a prompt longer than the model's context from the left, or skip its question; both are counted.
        tokenizer: folder or name; without it the model's.
        resamples: bootstrap draws an interval, at least 1000.
        confidence: share of the draws inside an interval.
        seed: of the draws.
        batch_size: options a forward.
        part: i/n computes the outcomes of the i-th of n parts of the masks and random masks, i from 0 on, and writes
            no result. Run as many processes as there are parts, then the same command without it.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps that of the files.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: no such model, no tokenizer, or masks of another model.
        ConfigError: an option out of range, or lm-eval is missing.
        DataError: no data, an unknown subject, or masks of something else than categories.
        NonFiniteError: a NaN or infinite log-likelihood.
    """
    bootstrap = Bootstrap(resamples=resamples, confidence=confidence, seed=seed)
    own = Part.parse(part)
    loaded = load_model(model, device, dtype)
    hold(loaded)
    result = evaluate_domains(
        loaded,
        None if masks is None else load_masks(masks, model=loaded),
        out=out,
        data=local_data,
        identify_on=identify_on,
        ratio=ratio,
        shots=shots,
        style=style,
        metric=metric,
        random_seeds=random_seeds,
        random_on=random_on,
        limit=limit,
        faults=faults,
        too_long=too_long,
        tokenizer=tokenizer,
        bootstrap=bootstrap,
        batch_size=batch_size,
        part=own,
        progress=progress,
    )
    if result is None:
        print(PART_DONE)
        return
    print(result.sentence)
    print(result.counts)
    print(f"result: {Path(out) / RESULT_NAME}; its tables: monet report --result {out} --out FOLDER")
