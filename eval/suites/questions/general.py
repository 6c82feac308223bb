"""General ability under masks: the eight benchmarks of the paper's Table 2, with random controls and intervals."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import load_masks
from monet.eval.attribution.statistics.prompt_hashes import mask_notes
from monet.eval.choices.scoring import Outcome, tokenizer_of
from monet.eval.choices.texts import digest_of
from monet.eval.core.achieved import control_notes
from monet.eval.core.announce import announce
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import Chance, chances
from monet.eval.core.conditions import Condition, conditions, dealt
from monet.eval.core.controls import Controls
from monet.eval.core.estimate import Draws, mean_of, one_of
from monet.eval.core.intervention import Intervention, check_all, unit_of
from monet.eval.core.loading import mask_digest, windows_bar
from monet.eval.core.model_origin import about_run
from monet.eval.core.options import DividedCompute, Intervals
from monet.eval.suites.questions.accuracy import Denominator, draws
from monet.eval.suites.questions.asked import Asked, chosen_elsewhere
from monet.eval.suites.questions.catalog import Metric, Style, benchmarks
from monet.eval.suites.questions.general_result import Cell, GeneralResult, Row
from monet.eval.suites.questions.options import QuestionOptions
from monet.eval.suites.questions.scoring import Scorer, TooLong, correct
from monet.eval.suites.questions.tasks import Faults, load_tasks
from monet.model.fingerprint import holds_weights
from monet.parts import Part

# All benchmarks are asked under every control, so the default is smaller than for suites that ask only a target.
_CONTROLS = 19


@dataclass(frozen=True)
class _Benchmark(Asked):
    """A benchmark's questions at one number of shots; `pooled` as in `catalog.Benchmark`."""

    shots: int
    pooled: bool


@holds_weights
def evaluate_general(
    model: Any,
    masks: Mapping[str, Intervention],
    *,
    out: str | os.PathLike[str],
    data: Path | None = None,
    names: Sequence[str] | None = None,
    shots: Sequence[int] = (0, 5),
    style: Style = "cloze",
    metric: Metric = "acc_norm",
    controls: Controls | None = None,
    limit: int | None = None,
    faults: Faults = "count",
    too_long: TooLong = "cut",
    tokenizer: str | None = None,
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> GeneralResult | None:
    """Accuracies on the paper's eight benchmarks without a mask, under each mask, and under its random controls.

    `out` keeps the outcomes of single questions. A second call with the same model, masks, data and settings reads them
    and gives the same numbers.

    Args:
        model: the complete model: a Monet, or any other causal language model that the masks fit.
        masks: masks by name; may be empty.
        out: folder for kept outcomes and result.json.
        data: folder with the data sets (`monet.eval.suites.questions.local_data`); None reads them from the hub or its
            cache.
        names: benchmarks to run, the paper's eight or ARC-Easy and SciQ; None runs the eight.
        shots: numbers of solved examples before a question; each number is a separate pass.
        style: `cloze` or `letters` (`monet.eval.suites.questions.catalog`).
        metric: accuracy that counts: by log-likelihood per character, if a task defines it, or plain.
        controls: random controls of each mask; None takes 19 that remove an equal number. The count may be 0.
        limit: at most this many questions per task (each of MMLU's 57 subjects is one), the first ones.
        faults: `count` rows that cannot be asked and missing data, or `refuse` them.
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
        ConfigError: an option is out of range, or lm-eval is missing.
        DataError: a benchmark has no data or unreadable data, or the masks are of several kinds.
        CheckpointError: a mask belongs to another model, or there is no tokenizer.
        NonFiniteError: a log-likelihood is NaN or infinite.
    """
    bootstrap = bootstrap or Bootstrap()
    if not shots or len(set(shots)) != len(shots):
        raise ConfigError(f"shots must be one or more different numbers, got {list(shots)}")
    controls = controls or Controls(_CONTROLS)
    check_all(masks, model)
    unit, _ = unit_of(masks)
    asked = [
        _Benchmark(one.name, *load_tasks(one.tasks, number, data=data, limit=limit, faults=faults), number, one.pooled)
        for number in shots
        for one in benchmarks(style, names)
    ]
    text = digest_of(question.content for of in asked for question in of.questions)
    run_under = conditions(masks, controls, text)
    tokens = tokenizer_of(model, tokenizer)
    scorer = Scorer(model, tokens, Path(out) / "outcomes", batch_size=batch_size, too_long=too_long)
    measured: list[list[list[Outcome]]] = [[] for _ in asked]
    passes = dealt([(condition, asked) for condition in run_under], part)
    total = len(passes) * sum(len(of.questions) for of in asked)
    with windows_bar(total, "", progress, unit="question") as bar:
        for condition, _ in passes:
            for of, outcomes in zip(asked, measured, strict=True):
                bar.set_description(f"{condition.name}: {of.name}, {of.shots}-shot", refresh=False)
                outcomes.append(scorer.outcomes(of.questions, condition, bar.update))
    if part is not None:
        return None
    provenance = {
        **about_run(model),
        "masks": mask_notes(masks),
        "mask_hashes": {one.name: mask_digest(one.mask) for one in run_under if one.control is None},
        "held_out": chosen_elsewhere(masks, asked, model, tokens),
        "controls": control_notes(controls, run_under),
        "style": style,
        "limit": limit,
        "faults": faults,
        "bootstrap": {**dataclasses.asdict(bootstrap), "unit": "question"},
        "data": {f"{part.shots}-shot {task.spec.name}": task.fingerprint for part in asked for task in part.tasks},
        "scoring": scorer.settings,
    }
    result = _summarise(unit, run_under, asked, measured, metric, bootstrap, provenance)
    result.save(out)
    return result


def _accuracies(
    one: _Benchmark, outcomes_CU: Sequence[Sequence[Outcome]], normalised: bool, bootstrap: Bootstrap
) -> list[Draws]:
    """One per condition. Tasks that have questions count equally; if the benchmark is pooled, questions do."""
    parts: dict[str, NDArray[np.float64]] = {}
    start = 0
    for task in one.tasks:
        end = start + len(task.questions)
        if task.questions:
            length = normalised and task.normalised
            parts[task.spec.name] = np.stack(
                [correct(task.questions, outcomes_U[start:end], length) for outcomes_U in outcomes_CU]
            )
        start = end
    if one.pooled:
        return draws(one.name, np.concatenate(list(parts.values()), axis=1), bootstrap, one.shots)
    by_task = [draws(name, correct_CU, bootstrap, one.shots) for name, correct_CU in parts.items()]
    return [mean_of(of_condition) for of_condition in zip(*by_task, strict=True)]


@dataclass(frozen=True)
class _Scores:
    """Accuracies by benchmark of one condition at one number of shots: those that count, and the plain ones."""

    counted: dict[str, Draws]
    plain: dict[str, Draws]

    @property
    def average(self) -> Draws:
        return mean_of(list(self.counted.values()))


def _one_of(several: Sequence[_Scores], bootstrap: Bootstrap) -> _Scores:
    """Draws of a single one of several controls; each draw takes the same control for all benchmarks."""

    def taken(kind: Literal["counted", "plain"]) -> dict[str, Draws]:
        return {name: one_of([getattr(one, kind)[name] for one in several], bootstrap) for name in several[0].plain}

    return _Scores(taken("counted"), taken("plain"))


def _row(
    condition: Condition, shots: int, found: _Scores, whole: _Scores, chance: Chance | None, bootstrap: Bootstrap
) -> Row:
    return Row(
        condition=condition.name,
        label=condition.label,
        control=condition.control,
        removed=condition.removed,
        shots=shots,
        cells={
            name: Cell(
                score=counted.estimate(bootstrap),
                acc=found.plain[name].value,
                delta=(counted - whole.counted[name]).estimate(bootstrap),
            )
            for name, counted in found.counted.items()
        },
        average=found.average.estimate(bootstrap),
        average_delta=(found.average - whole.average).estimate(bootstrap),
        controls=chance.controls if chance else None,
        p=chance.p if chance else None,
        q=chance.q if chance else None,
    )


def _lost(whole: _Scores, found: _Scores) -> float:
    """Loss of the average, rounded: its last bits depend on the benchmark in which an answer changed."""
    return round((whole.average - found.average).value, 12)


def _summarise(
    unit: str,
    run_under: Sequence[Condition],
    asked: Sequence[_Benchmark],
    measured: Sequence[list[list[Outcome]]],
    metric: Metric,
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> GeneralResult:
    rows: list[Row] = []
    random: list[Row] = []
    denominators: dict[str, list[Denominator]] = {}
    for shots in dict.fromkeys(one.shots for one in asked):
        plain: dict[str, list[Draws]] = {}
        counted: dict[str, list[Draws]] = {}
        for one, outcomes_CU in zip(asked, measured, strict=True):
            if one.shots == shots:
                denominators.setdefault(str(shots), []).append(one.denominator(outcomes_CU[0]))
                plain[one.name] = counted[one.name] = _accuracies(one, outcomes_CU, False, bootstrap)
                if metric == "acc_norm" and any(task.normalised for task in one.tasks):
                    counted[one.name] = _accuracies(one, outcomes_CU, True, bootstrap)
        scores = [
            _Scores(*({name: of[number] for name, of in kind.items()} for kind in (counted, plain)))
            for number in range(len(run_under))
        ]
        of_controls: dict[str | None, list[_Scores]] = {}
        for condition, found in zip(run_under, scores, strict=True):
            if condition.control is not None:
                of_controls.setdefault(condition.label, []).append(found)
        own = {one.label: found for one, found in zip(run_under, scores, strict=True) if one.control is None}
        beside_chance = chances(
            {str(label): _lost(scores[0], own[label]) for label in of_controls},
            {str(label): [_lost(scores[0], one) for one in several] for label, several in of_controls.items()},
        )
        for condition, found in zip(run_under, scores, strict=True):
            several = of_controls.get(condition.label) if condition.control is None else None
            chance = beside_chance[str(condition.label)] if several else None
            rows.append(_row(condition, shots, found, scores[0], chance, bootstrap))
            if several:
                any_of_them = dataclasses.replace(condition, name=f"random like {condition.label}")
                random.append(_row(any_of_them, shots, _one_of(several, bootstrap), scores[0], None, bootstrap))
    return GeneralResult(unit, rows, random, denominators, metric, provenance)


def run(
    model: str,
    out: Path,
    masks: Path | None = None,
    benchmarks: list[str] | None = None,
    shots: list[int] = [0, 5],  # noqa: B006 - shown in --help, never changed
    controls: ControlOptions = ControlOptions(count=_CONTROLS),  # noqa: B008 - frozen
    questions: QuestionOptions = QuestionOptions(),  # noqa: B008 - frozen
    intervals: Intervals = Intervals(),  # noqa: B008 - frozen
    compute: DividedCompute = DividedCompute(),  # noqa: B008 - frozen
) -> None:
    """Measure general ability under masks: MMLU, ARC, WinoGrande, PIQA, SIQA, OBQA, HellaSwag and CommonsenseQA.

    Prompts and few-shot examples are lm-evaluation-harness's. The command writes OUT/result.json, which `monet report`
    turns into tables. It keeps each question's outcome in OUT/outcomes, so the same command continues after a kill.

    Args:
        model: a Monet model: a Hugging Face folder or a name on the hub.
        out: folder for result.json and kept outcomes.
        masks: folder of `monet select`, or one mask file in it; if omitted, only the unmasked model is measured.
        benchmarks: any of MMLU, ARC, WinoGrande, PIQA, SIQA, OBQA, HellaSwag, CSQA, ARC-Easy, SciQ; if omitted, the
            first eight.
        shots: solved examples before each question; each number is a separate pass.
        controls: random controls of each mask; all benchmarks are asked under each control. A count of 0 makes none.

    Raises:
        CheckpointError: there is no such model or no tokenizer, or masks belong to another model.
        ConfigError: an option is out of range, or lm-eval is missing.
        DataError: a benchmark has no data or unreadable data.
        NonFiniteError: a log-likelihood is NaN or infinite.
    """
    bootstrap = intervals.bootstrap()
    part = compute.own_part
    loaded = compute.load(model)
    result = evaluate_general(
        loaded,
        {} if masks is None else load_masks(masks, model=loaded),
        out=out,
        data=questions.local_data,
        names=benchmarks,
        shots=shots,
        style=questions.style,
        metric=questions.metric,
        controls=controls.open(loaded),
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
