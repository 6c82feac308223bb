"""Measures pass@k after each language's experts are removed, and compares it with random controls.

The paper's protocol (arXiv 2412.04139, section 5.2 and appendix D.2): MultiPL-E in six languages, 200 samples per
problem at temperature 0.8, pass@100.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.errors import CheckpointError, ConfigError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import load_masks
from monet.eval.core.achieved import control_notes
from monet.eval.core.announce import announce
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import Condition, conditions, dealt
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.decoding import GENERATED_CONTROLS
from monet.eval.core.intervention import Intervention, check_all, unit_of
from monet.eval.core.loading import (
    own_tokenizer,
    windows_bar,
)
from monet.eval.core.options import DividedCompute, Intervals, WindowOptions
from monet.eval.core.store import model_key
from monet.eval.sandbox.execution import check_workers, execute, kept_statuses
from monet.eval.sandbox.limits import Limits
from monet.eval.sandbox.runtimes import Runtime, find_runtimes
from monet.eval.sandbox.sandbox import Sandbox, open_sandbox
from monet.eval.suites.code.generation import Sampler, Sampling
from monet.eval.suites.code.masks import about_masks, losses_only, provenance_of
from monet.eval.suites.code.problems import CODES, ProblemSet, language_of, read_problems
from monet.eval.suites.code.results import CodeResult, ConditionScores
from monet.eval.suites.code.scoring import Tally, condition_scores, judged_k, score, tally, verdicts
from monet.model.experts import lay_out_for_decoding
from monet.model.fingerprint import holds_weights
from monet.parts import Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KS = (1, 10, 100)


def check_ks(ks: Sequence[int]) -> None:
    """Refuse a k below 1, a repeated k, or an empty list.

    Raises:
        ConfigError: a k is refused; the message names all of them.
    """
    if not ks or min(ks) < 1 or len(set(ks)) != len(ks):
        raise ConfigError(f"ks must be one or more different numbers, each at least 1, got {list(ks)}")


@holds_weights
def evaluate_code(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    masks: Mapping[str, Intervention],
    problems: ProblemSet,
    *,
    out: str | os.PathLike[str],
    sandbox: Sandbox | None = None,
    libraries: Sequence[Path] = (),
    sampling: Sampling | None = None,
    ks: Sequence[int] = KS,
    controls: Controls | None = None,
    control_on: ControlOn = "target",
    bootstrap: Bootstrap | None = None,
    workers: int = 1,
    perplexity: AblationResult | None = None,
    part: Part | None = None,
    progress: bool = True,
) -> CodeResult | None:
    """Sample completions of every problem under every condition, run the programs, and score them.

    `out` keeps each completion and each program's outcome as soon as it is known. A second call with the same model,
    masks, problems and settings continues from them and gives the same numbers.

    Args:
        model: the complete model: a Monet, or any other causal language model that the masks fit.
        tokenizer: the model's tokenizer.
        masks: masks by label; each removes the label's units; may be empty.
        problems: problems by language (`read_problems`).
        out: folder for outcomes and result.json.
        sandbox: sandbox that runs the programs (`open_sandbox`); None runs no program, and the result says so.
        libraries: folders with luaunit.lua and javatuples.jar, searched before the system's.
        sampling: settings of the completions.
        ks: the values of k in pass@k.
        controls: random controls of each mask; None takes nineteen that remove an equal number.
        control_on: measure controls only on their own language, or on all languages. If a mask's label is not a
            language, its controls are measured only with `all`.
        bootstrap: settings of the bootstrap, which resamples problems.
        workers: number of programs that run at the same time.
        perplexity: losses on text by language, to include in the result.
        part: share of the conditions to sample, run and keep; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None if a part is given.

    Raises:
        CheckpointError: a mask belongs to another model or has another size.
        ConfigError: a setting is out of range, or another process evaluates the same in `out`.
        DataError: the masks are for different units.
    """
    bootstrap, sampling = bootstrap or Bootstrap(), sampling or Sampling()
    controls = controls or Controls(GENERATED_CONTROLS)
    check_ks(ks)
    check_workers(workers)
    unit_of(masks)
    check_all(masks, model)
    languages = list(problems.problems)
    runtimes: dict[str, Runtime] = {}
    unavailable = dict(problems.missing)
    if sandbox is not None:
        asked = [language for language in languages if language not in unavailable]
        runtimes, missing = find_runtimes(asked, sandbox, libraries)
        unavailable |= missing
    evaluated = [language for language in languages if language not in unavailable]
    store = Path(out) / "outcomes"
    sampler = Sampler(model, tokenizer, sampling, store, model_key(model))
    passes = _passes(conditions(masks, controls, problems.fingerprint), evaluated, control_on)
    taken = dealt(passes, part)
    tallies: dict[str, dict[str, Tally]] = {}
    for language in evaluated:
        asked_for = problems.problems[language]
        total = len(asked_for) * sampling.num_samples
        with contextlib.ExitStack() as stack:
            kept = None
            if sandbox is not None:
                kept = stack.enter_context(kept_statuses(runtimes[language], sandbox, store, part))
            for condition in (one for one, asked_in in taken if language in asked_in):
                name = f"{condition.name}: {language}"
                with windows_bar(total, f"{name}, write", progress, unit="sample") as bar:
                    completions = sampler.completions(condition.mask, asked_for, bar.update)
                statuses = None
                if sandbox is not None and kept is not None:
                    programs = {one.program(text) for one in asked_for for text in completions.get(one.name, [])}
                    with windows_bar(len(programs), f"{name}, run", progress, unit="program") as bar:
                        statuses = execute(sorted(programs), runtimes[language], sandbox, kept, workers, bar.update)
                tallies.setdefault(language, {})[condition.name] = tally(asked_for, completions, statuses)
    if part is not None:
        return None
    scored = {
        language: score(language, found, ks, bootstrap, number)
        for number, (language, found) in enumerate(tallies.items())
    }
    asked_under = [condition for condition, _ in passes]
    rows, k = condition_scores(asked_under, scored, bootstrap), judged_k(scored, ks)
    provenance = {
        "problems": problems.description,
        "sampling": dataclasses.asdict(sampling),
        "bootstrap": dataclasses.asdict(bootstrap) | {"unit": "problem"},
        "sandbox": None if sandbox is None else dataclasses.asdict(sandbox),
        "controls": control_notes(controls, asked_under, on=control_on),
    }
    texts = [problem.text for found in problems.problems.values() for problem in found]
    result = CodeResult(
        executed=sandbox is not None,
        ks=list(ks),
        judged_k=k,
        languages={language: runtimes[language].version if language in runtimes else None for language in languages},
        unavailable=unavailable,
        conditions=rows,
        verdicts=verdicts(masks, asked_under, scored, k, bootstrap),
        perplexity=perplexity,
        partial=_what_is_missing(rows, unavailable, sandbox),
        provenance=provenance_of(model, masks) | provenance,
        **about_masks(masks, texts),
    )
    result.save(out)
    return result


def _passes(
    asked: Sequence[Condition], languages: list[str], control_on: ControlOn
) -> list[tuple[Condition, list[str]]]:
    """Conditions with the languages that each is measured on; conditions without a language are left out."""
    found = []
    for condition in asked:
        on_target = condition.control is not None and control_on == "target"
        own = language_of(condition.label or "")
        measured_on = [language for language in languages if not on_target or language == own]
        if measured_on or condition.control is None:
            found.append((condition, measured_on))
    return found


def _what_is_missing(
    scored: Sequence[ConditionScores], unavailable: Mapping[str, str], sandbox: Sandbox | None
) -> list[str]:
    missing = [f"{language} was not evaluated: {reason}" for language, reason in unavailable.items()]
    if sandbox is None:
        missing.append("no program was executed")
        return missing
    counted: Counter[str] = Counter()
    for condition in scored:
        name = condition.name if condition.control is None else f"random controls of {condition.label}"
        for one in condition.scores:
            counted.update({f"{name}, {one.language}, {why}": number for why, number in one.unscored.items()})
    missing += [f"{what}: {number}" for what, number in counted.items()]
    return missing


def run(
    model: str,
    out: Path,
    masks: Path | None = None,
    problems: str = "nuprl/MultiPL-E",
    benchmark: str = "humaneval",
    languages: list[str] = list(CODES),  # noqa: B006 - shown in --help, never changed
    limit: int | None = None,
    allow_code_execution: bool = False,
    libraries: list[Path] = [],  # noqa: B006
    num_samples: int = 200,
    ks: list[int] = list(KS),  # noqa: B006
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int = 512,
    controls: ControlOptions = ControlOptions(count=GENERATED_CONTROLS),  # noqa: B008 - frozen
    control_on: ControlOn = "target",
    cpu_seconds: int = 15,
    wall_seconds: float = 60.0,
    memory_mb: int = 1024,
    workers: int = 1,
    data: Path | None = None,
    split: str = "evaluate",
    perplexity_only: bool = False,
    windows: WindowOptions = WindowOptions(),  # noqa: B008 - frozen
    intervals: Intervals = Intervals(),  # noqa: B008 - frozen
    compute: DividedCompute = DividedCompute(batch_size=20),  # noqa: B008 - frozen
) -> None:
    """Measure pass@k before and after each language's experts are removed, and compare it with random controls.

    The command writes OUT/result.json, which `monet report` turns into a page. It keeps completions and outcomes in
    OUT/outcomes, so the same command continues after a kill. Without --allow_code_execution it writes programs and runs
    none of them.

    Args:
        model: a Hugging Face folder or a name on the hub, with a tokenizer.
        out: folder for result.json, completions and outcomes.
        masks: folder of `monet select`, or one mask file in it; if omitted, only the unmasked model is measured.
        problems: file or folder with MultiPL-E's prompts (.json, .jsonl, .jsonl.gz, .parquet), or a data set's name on
            the hub.
        benchmark: humaneval or mbpp; chooses the configurations on the hub.
        languages: any of python, cpp, java, javascript, lua, php.
        limit: number of problems per language, the first ones; if omitted, all.
        allow_code_execution: run the generated programs, isolated by bubblewrap: no network, no access to files,
            limits.
        libraries: folders with luaunit.lua and javatuples.jar, searched before the system's.
        num_samples: completions per problem.
        ks: the values of k in pass@k; each needs at least k samples.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: sample only from the likeliest tokens that hold this share of the probability.
        max_new_tokens: length of a completion at most. A problem whose prompt leaves less room is left out and counted.
        controls: random controls of each mask.
        control_on: measure controls only on their own language, or on all languages, which takes longer by the number
            of languages.
        cpu_seconds: processor time of a program, and of its compiler, in seconds.
        wall_seconds: wall-clock time of compiler and program together, in seconds.
        memory_mb: memory of a program with all its processes, in MiB.
        workers: number of programs that run at the same time.
        data: folder of `monet data prepare` with text by language, to report perplexities in addition to pass@k.
        split: split of DATA to read.
        perplexity_only: measure only losses on DATA; this reads no problems and needs no runtimes.

    Raises:
        CheckpointError: there is no such model or it has no tokenizer, or masks belong to another model.
        ConfigError: an option is out of range, there are no problems, or this machine cannot isolate programs.
        DataError: a problem lacks a field, or DATA is unusable.
    """
    bootstrap = intervals.bootstrap()
    sampling = Sampling(num_samples, temperature, top_p, max_new_tokens, compute.batch_size, intervals.seed)
    part = compute.own_part
    limits = Limits(cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb)
    check_ks(ks)
    check_workers(workers)
    if perplexity_only and data is None:
        raise ConfigError("perplexity_only needs text by language; give --data a folder of `monet data prepare`")
    if data is not None and masks is None:
        raise ConfigError("data needs masks, because perplexities are compared before and after a mask; give --masks")
    found = None if perplexity_only else read_problems(problems, languages, benchmark).first(limit)
    sandbox = open_sandbox(limits) if allow_code_execution and not perplexity_only else None
    loaded = compute.load(model)
    chosen = {} if masks is None else load_masks(masks, model=loaded)
    drawn = controls.open(loaded)
    losses = None
    if data is not None:
        losses = ablate(
            loaded,
            chosen,
            windows.open(data, split, loaded),
            out=Path(out) / "perplexity",
            controls=drawn,
            control_on=control_on,
            bootstrap=bootstrap,
            part=part,
            progress=compute.progress,
        )
    result = None
    if found is None:
        if losses is not None:
            result = losses_only(loaded, chosen, losses, out)
    else:
        tokenizer = own_tokenizer(loaded)
        if tokenizer is None:
            raise CheckpointError(
                f"{model}: no tokenizer in this folder, but completions need the model's own; export the model with "
                "its tokenizer"
            )
        if loaded.device.type == "cuda":
            lay_out_for_decoding(loaded)
        result = evaluate_code(
            loaded,
            tokenizer,
            chosen,
            found,
            out=out,
            sandbox=sandbox,
            libraries=libraries,
            sampling=sampling,
            ks=ks,
            controls=drawn,
            control_on=control_on,
            bootstrap=bootstrap,
            workers=workers,
            perplexity=losses,
            part=part,
            progress=compute.progress,
        )
    announce(result, out)
