"""General ability under masks: the eight benchmarks of the paper's Table 2, with random controls and intervals."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.bootstrap import Bootstrap, Resampled
from monet.eval.conditions import PART_DONE, Condition, conditions, dealt
from monet.eval.harness.accuracy import Denominator, count_outcomes, estimate, mean_of, resample
from monet.eval.harness.catalog import Benchmark, Style, benchmarks
from monet.eval.harness.general_result import Cell, GeneralResult, Row
from monet.eval.harness.scoring import Outcome, Scorer, TooLong, correct, tokenizer_of
from monet.eval.harness.tasks import Faults, LoadedTask, load_tasks
from monet.eval.loading import DType, load_model, mask_digest, provenance_now, windows_bar
from monet.eval.results import RESULT_NAME
from monet.eval.selection import check_mask, load_masks
from monet.files import atomic_write_json
from monet.fingerprint import hold, holds_weights
from monet.masks import ExpertMask
from monet.parts import Part

if TYPE_CHECKING:
    from monet.modeling_monet import MonetForCausalLM

Metric = Literal["acc_norm", "acc"]


@dataclass(frozen=True)
class _Asked:
    """A benchmark's questions at one number of shots."""

    benchmark: Benchmark
    shots: int
    tasks: list[LoadedTask]
    missing: list[str]

    @property
    def num_questions(self) -> int:
        return sum(len(task.questions) for task in self.tasks)

    def denominator(self, outcomes: Sequence[Sequence[Outcome]]) -> Denominator:
        unscored, cut = count_outcomes([outcome for part in outcomes for outcome in part])
        unaskable: dict[str, int] = {}
        for task in self.tasks:
            for reason, number in task.skipped.items():
                unaskable[reason] = unaskable.get(reason, 0) + number
        return Denominator(
            name=self.benchmark.name,
            rows=sum(task.rows for task in self.tasks),
            unaskable=unaskable,
            asked=self.num_questions,
            unscored=unscored,
            cut=cut,
            missing=self.missing,
            split=", ".join(dict.fromkeys(task.split for task in self.tasks)),
            examples_from=", ".join(dict.fromkeys(task.examples_from for task in self.tasks if task.examples_from)),
            sources=list(dict.fromkeys(task.source for task in self.tasks)),
        )


@holds_weights
def evaluate_general(
    model: MonetForCausalLM,
    masks: Mapping[str, ExpertMask],
    *,
    out: str | os.PathLike[str],
    data: Path | None = None,
    names: Sequence[str] | None = None,
    shots: Sequence[int] = (0, 5),
    style: Style = "cloze",
    metric: Metric = "acc_norm",
    random_seeds: Sequence[int] = (0,),
    limit: int | None = None,
    faults: Faults = "count",
    too_long: TooLong = "cut",
    tokenizer: str | None = None,
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> GeneralResult | None:
    """Accuracies on the paper's eight benchmarks without a mask, under each mask, and under random masks of equal size.

    Outcomes of single questions are kept in `out`; a second call with the same model, masks, data and settings reads
    them and gives the same numbers.

    Args:
        model: the whole model.
        masks: by name; may be empty.
        out: folder for kept outcomes and result.json.
        data: folder with the data sets (`monet.eval.harness.local_data`); None takes them from the hub or its cache.
        names: benchmarks to run; None runs all eight.
        shots: numbers of solved examples before a question; a pass each.
        style: `cloze` or `letters` (`monet.eval.harness.catalog`).
        metric: which accuracy counts: by log-likelihood a character where a task defines it, or plain.
        random_seeds: one random mask a mask and seed; may be empty.
        limit: at most so many questions a task (each of MMLU's 57 subjects is one), the first ones.
        faults: `count` rows that cannot be asked and missing data, or `refuse`.
        too_long: `cut` prompts longer than the model's context from the left, or `skip` them; both are counted.
        tokenizer: folder or name, if it is not the model's.
        bootstrap: how intervals are made; questions are drawn.
        batch_size: options a forward.
        part: of the conditions, whose outcomes are computed and kept; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None with a part.

    Raises:
        ConfigError: an option out of range, or lm-eval is missing.
        DataError: no data for a benchmark, or data that cannot be read.
        CheckpointError: a mask of another model, or no tokenizer.
        NonFiniteError: a NaN or infinite log-likelihood.
    """
    bootstrap = bootstrap or Bootstrap()
    if not shots or len(set(shots)) != len(shots):
        raise ConfigError(f"shots must name one number or more, none twice, got {list(shots)}")
    for label, mask in masks.items():
        check_mask(label, mask, model)
    run_under = conditions(masks, random_seeds)
    asked = [
        _Asked(benchmark, number, *load_tasks(benchmark.tasks, number, data=data, limit=limit, faults=faults))
        for number in shots
        for benchmark in benchmarks(style, names)
    ]
    scorer = Scorer(
        model, tokenizer_of(model, tokenizer), Path(out) / "outcomes", batch_size=batch_size, too_long=too_long
    )
    measured: dict[tuple[int, str], list[list[list[Outcome]]]] = {}
    passes = dealt([(condition, asked) for condition in run_under], part)
    total = len(passes) * sum(of.num_questions for of in asked)
    with windows_bar(total, "", progress, unit="question") as bar:
        for condition, _ in passes:
            for of in asked:
                bar.set_description(f"{condition.name}: {of.benchmark.name}, {of.shots}-shot", refresh=False)
                questions = [question for task in of.tasks for question in task.questions]
                found = iter(scorer.outcomes(questions, condition, bar.update))
                of_task = [[next(found) for _ in task.questions] for task in of.tasks]
                measured.setdefault((of.shots, of.benchmark.name), []).append(of_task)
    if part is not None:
        return None
    provenance = {
        **provenance_now(),
        "model": str(model.name_or_path),
        "model_fingerprint": model.fingerprint(),
        "masks": {label: mask.provenance for label, mask in masks.items()},
        "mask_hashes": {condition.name: mask_digest(condition.mask) for condition in run_under},
        "random_seeds": list(random_seeds),
        "style": style,
        "limit": limit,
        "faults": faults,
        "bootstrap": {**dataclasses.asdict(bootstrap), "unit": "question"},
        "data": {f"{part.shots}-shot {task.spec.name}": task.fingerprint for part in asked for task in part.tasks},
        "scoring": scorer.settings,
    }
    result = _summarise(run_under, asked, measured, metric, bootstrap, provenance)
    atomic_write_json(Path(out) / RESULT_NAME, result.to_json())
    return result


def _correct(part: _Asked, outcomes_CT: list[list[list[Outcome]]], normalised: bool) -> list[NDArray[np.float64]]:
    """For each task its (C, U) right answers."""
    return [
        np.stack(
            [correct(task.questions, found[number], normalised and task.normalised) for found in outcomes_CT], axis=0
        )
        for number, task in enumerate(part.tasks)
        if task.questions
    ]


def _resample(part: _Asked, correct_TCU: list[NDArray[np.float64]], bootstrap: Bootstrap) -> Resampled:
    name = part.benchmark.name
    if part.benchmark.pooled:
        return resample(name, np.concatenate(correct_TCU, axis=1), bootstrap, part.shots)
    return mean_of(
        [
            resample(task.spec.name, correct_CU, bootstrap, part.shots)
            for task, correct_CU in zip([task for task in part.tasks if task.questions], correct_TCU, strict=True)
        ]
    )


def _summarise(
    run_under: Sequence[Condition],
    asked: Sequence[_Asked],
    measured: Mapping[tuple[int, str], list[list[list[Outcome]]]],
    metric: Metric,
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> GeneralResult:
    rows: list[Row] = []
    for shots in dict.fromkeys(part.shots for part in asked):
        parts = [part for part in asked if part.shots == shots]
        plain, counted = [], []
        for part in parts:
            outcomes_CT = measured[shots, part.benchmark.name]
            plain.append(_resample(part, _correct(part, outcomes_CT, False), bootstrap))
            normalised = metric == "acc_norm" and any(task.normalised for task in part.tasks)
            counted.append(_resample(part, _correct(part, outcomes_CT, True), bootstrap) if normalised else plain[-1])
        average = mean_of(counted)
        for number, condition in enumerate(run_under):
            rows.append(
                Row(
                    condition=condition.name,
                    label=condition.label,
                    seed=condition.seed,
                    experts=condition.experts,
                    shots=shots,
                    cells={
                        part.benchmark.name: Cell(
                            score=estimate(counted[place], number, bootstrap),
                            acc=float(plain[place].mean_C[number]),
                            delta=estimate(counted[place], number, bootstrap, against=0),
                        )
                        for place, part in enumerate(parts)
                    },
                    average=estimate(average, number, bootstrap),
                    average_delta=estimate(average, number, bootstrap, against=0),
                )
            )
    denominators = {
        str(shots): [part.denominator(measured[shots, part.benchmark.name][0]) for part in asked if part.shots == shots]
        for shots in dict.fromkeys(part.shots for part in asked)
    }
    return GeneralResult(rows, denominators, metric, provenance)


def run(
    model: str,
    out: Path,
    masks: Path | None = None,
    local_data: Path | None = None,
    benchmarks: list[str] | None = None,
    shots: list[int] = [0, 5],  # noqa: B006 - shown in --help, never changed
    style: Style = "cloze",
    metric: Metric = "acc_norm",
    random_seeds: list[int] = [0],  # noqa: B006
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
    """Measure general ability under masks: MMLU, ARC, WinoGrande, PIQA, SIQA, OBQA, HellaSwag and CommonsenseQA.

    Prompts and few-shot examples are lm-evaluation-harness's. Writes OUT/result.json, which `monet report` turns into
    tables. Each question's outcome is kept in OUT/outcomes, so the same command goes on after a kill.

    Args:
        model: Hugging Face folder or name of a Monet model.
        out: folder for result.json and kept outcomes.
        masks: folder of `monet select`, or one mask file in it; without it the model as it is is measured alone.
        local_data: folder with the data sets as the hub has them (jsonl, parquet, arrow); without it the hub is asked.
        benchmarks: some of MMLU, ARC, WinoGrande, PIQA, SIQA, OBQA, HellaSwag, CSQA; without it all.
        shots: solved examples before each question; each number is a pass of its own.
        style: cloze scores the text of every option; letters has MMLU and CSQA answered by a letter, as the harness's
            default tasks do.
        metric: acc_norm divides log-likelihoods by the option's characters where a task defines it; acc does not.
        random_seeds: one random mask per mask and seed, of as many experts of every routing group; [] makes none.
        limit: questions a task (each of MMLU's subjects is one), the first ones; for a quick look.
        faults: count rows that cannot be asked and data that are missing, or refuse them.
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
        DataError: no data for a benchmark, or data that cannot be read.
        NonFiniteError: a NaN or infinite log-likelihood.
    """
    bootstrap = Bootstrap(resamples=resamples, confidence=confidence, seed=seed)
    own = Part.parse(part)
    loaded = load_model(model, device, dtype)
    hold(loaded)
    result = evaluate_general(
        loaded,
        {} if masks is None else load_masks(masks, model=loaded),
        out=out,
        data=local_data,
        names=benchmarks,
        shots=shots,
        style=style,
        metric=metric,
        random_seeds=random_seeds,
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
