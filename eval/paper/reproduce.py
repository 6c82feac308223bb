"""The `monet reproduce` command: lists what a table of the paper needs, runs it, and compares our values with it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.core.decoding import GENERATED_CONTROLS
from monet.eval.core.loading import DType, provenance_now
from monet.eval.core.results import RESULT_NAME
from monet.eval.paper.estimate import formula, gpu_hours
from monet.eval.paper.models import name_of, paper_config
from monet.eval.paper.published import GENERAL, PAPER
from monet.eval.paper.request import OUT, Need, Request, Step, plain
from monet.eval.paper.result import ReproductionResult
from monet.eval.paper.rows import scorer_key
from monet.eval.paper.tables import TABLES, Experiment
from monet.eval.reporting import command as report
from monet.eval.scorers.choose import make_scorer
from monet.eval.scorers.scorers import ScorerSettings
from monet.files import atomic_write_json, sha256_file
from monet.json_text import read_json
from monet.options import arguments_of

STEPS_NAME = "steps.json"


def missing(experiment: Experiment, request: Request) -> dict[str, str]:
    """What the experiment needs and does not have, with the remedy for each."""
    return {need.name: why for need in _needs(experiment) if need.required and (why := need.missing(request))}


def _needs(experiment: Experiment) -> list[Need]:
    return [*experiment.needs, OUT]


def reproduce(experiment: Experiment, request: Request) -> ReproductionResult:
    """Run the steps of an experiment and compare their results with the paper's values.

    The request's folder keeps finished steps, so the same call continues after a kill.

    Args:
        experiment: one of `monet.eval.paper.tables.TABLES`.
        request: request with everything that the experiment needs.

    Raises:
        ConfigError: something needed is missing; the message names everything with its remedy.
        MonetError: a step failed.
    """
    if gone := missing(experiment, request):
        told = "; ".join(f"{name}: {why}" for name, why in gone.items())
        raise ConfigError(f"table {experiment.table} cannot run yet; it needs {told}")
    assert request.out is not None
    if experiment.scorer is not None:
        make_scorer(experiment.scorer.chosen(request.scorer))  # an unusable scorer fails now, not after hours
    folder = request.out / experiment.folder
    steps = experiment.steps(request, folder)
    for number, step in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {step.command}")
        run_step(step, folder / STEPS_NAME)
    own = own_name(request.model) if request.model else experiment.paper_model
    paper_model = own if experiment.any_size and own in GENERAL[0] else experiment.paper_model
    provenance = {**provenance_now(), "model": request.model, "commands": [step.command for step in steps]}
    cautions = _cautions(experiment, request, steps, own == paper_model.replace("CodeMonet", "Monet"), paper_model)
    if experiment.scorer is not None and (key := scorer_key(folder)):
        provenance |= {"scorer": key, "paper_scorer": experiment.scorer.name}
        cautions += [caution] if (caution := experiment.scorer.caution(key)) else []
    result = ReproductionResult(
        table=experiment.table,
        title=experiment.title,
        source=PAPER,
        paper_model=paper_model,
        cautions=cautions,
        rows=experiment.rows(folder, paper_model),
        protocol=experiment.protocol,
        provenance=provenance,
    )
    target = request.out / f"table-{experiment.table}"
    result.save(target)
    report.write(result, target)
    return result


def _cautions(
    experiment: Experiment, request: Request, steps: list[Step], same_shape: bool, paper_model: str
) -> list[str]:
    """Reasons why the values may differ from those of the paper's experiment."""
    found = []
    if not same_shape:
        found.append(
            f"The paper's values belong to {paper_model}. The model here has another shape, so differences say "
            "nothing about the paper.",
        )
    if request.limit is not None:
        found.append(f"At most {request.limit} items of each kind were taken (--limit).")
    for need in experiment.needs:
        if not need.required and need.settled and (why := need.missing(request)):
            found.append(f"Different from the paper: {need.name}, {need.what}: {why}.")
    for step in steps:
        if step.writes.name == RESULT_NAME and getattr(report.load(step.writes), "partial", False):
            found.append(f"The result of `monet {step.verb}` is partial; its own report shows what is missing.")
        about = step.writes.with_suffix(".about.json")
        if about.exists() and read_json(about).get("partial"):
            found.append(f"Experts were chosen on only a part of the texts: {about} counts the texts without a score.")
    return found


def run_step(step: Step, record: Path) -> None:
    """Run a step. A step that keeps nothing itself is skipped if it has finished with these options."""
    from monet.cli import VERBS

    done: dict[str, Any] = read_json(record) if record.exists() else {}
    settings = plain({"verb": step.verb, **step.options, "progress": None})
    if step.reads:
        settings["reads"] = {str(path): _state(path) for path in step.reads}
    name = str(step.writes.relative_to(record.parent))
    if not step.resumes and done.get(name) == settings and step.writes.exists():
        print(f"kept: {step.writes}")
        return
    module, _, function = VERBS[step.verb].target.partition(":")
    target: Callable[..., Any] = getattr(importlib.import_module(module), function)
    target(**arguments_of(target, step.options))
    atomic_write_json(record, {**done, name: settings})


def _state(path: Path) -> Any:
    """A value that changes with a file or folder: a file's SHA-256, or sizes and times of a folder's files."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def own_name(model: str) -> str | None:
    """Name of the paper's model that has the shape of this model."""
    from monet import MonetConfig

    try:
        return name_of(MonetConfig.from_pretrained(model))
    except OSError as error:
        raise CheckpointError(f"{model}: no model found ({str(error).splitlines()[0]})") from None


def _print_all(request: Request) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("table", "shows", "runs", "needs", f"GPU hours ({request.gpu})", box=box.SIMPLE_HEAD)
    for one in TABLES.values():
        verbs = dict.fromkeys(step.verb for step in one.steps(request, Path(one.folder)))
        needs = ", ".join(need.name for need in one.needs if need.required) or "nothing"
        hours = gpu_hours(one.work(request), paper_config(), request.gpu)
        table.add_row(str(one.table), one.title, ", ".join(verbs) or "counting", needs, f"{hours:.1f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Hours are estimates: {formula(request.gpu)}.", soft_wrap=True)
    console.print(
        "For one table: monet reproduce --table N. To run it, add --model, --out and everything that it needs."
    )


def _print_one(experiment: Experiment, request: Request) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]Table {experiment.table}: {escape(experiment.title)}[/bold]\n{escape(experiment.protocol)}")
    published = Table("published", "unit", escape(f"paper, {experiment.paper_model}"), box=box.SIMPLE_HEAD)
    for row in experiment.rows(None, experiment.paper_model):
        published.add_row(escape(row.name), row.unit, f"{row.published:,.{row.digits}f}")
    needs = Table("needs", "what", "here", box=box.SIMPLE_HEAD)
    for need in _needs(experiment):
        why = need.missing(request)
        state = "yes" if not why else f"{'missing: ' if need.required else ''}{why}"
        needs.add_row(need.name, escape(need.what), escape(state))
    console.print(published, needs)
    shown = dataclasses.replace(
        request,
        model=request.model or "MODEL",
        data=request.data or (Path("DATA") if any(need.name == "text" for need in experiment.needs) else None),
        prompts=request.prompts or [Path("PROMPTS")],
    )
    for step in experiment.steps(shown, (request.out or Path("OUT")) / experiment.folder):
        console.print(f"  {escape(step.command)}", soft_wrap=True)
    work = experiment.work(request)
    hours = gpu_hours(work, paper_config(), request.gpu)
    told = f"about {hours:.1f} GPU hours by {formula(request.gpu)}. What is counted: {work.counted}."
    console.print(f"\nCost at the 1.4B size: {told}" if hours else "\nCost: none.", soft_wrap=True)
    if experiment.also:
        console.print(escape(experiment.also), soft_wrap=True)
    console.print(f"Published values: {PAPER}.", soft_wrap=True)


def run(
    table: int | None = None,
    model: str | None = None,
    out: Path | None = None,
    data: Path | None = None,
    prompts: list[Path] = [],  # noqa: B006 - shown in --help, never changed
    problems: str = "nuprl/MultiPL-E",
    libraries: list[Path] = [],  # noqa: B006
    scorer: ScorerSettings = ScorerSettings(kind="classifier"),  # noqa: B008 - frozen, shown in --help
    allow_code_execution: bool = False,
    held_out: bool = False,
    controls: ControlOptions = ControlOptions(count=GENERATED_CONTROLS),  # noqa: B008 - frozen
    limit: int | None = None,
    gpu: str = "h100",
    device: str = "auto",
    dtype: DType = "auto",
    progress: bool = True,
) -> None:
    """List the paper's tables, show what a table needs, or run it and compare our values with the published ones.

    Without --table, the command lists all tables with their cost. With --table, it shows what the table needs, what is
    missing here, the commands and the published values. With --model and --out (Table 8: only --out), it runs them. The
    same command continues after a kill. OUT/table-N holds the comparison; the other folders in OUT hold the results.

    Args:
        table: number of the paper's table.
        model: a Hugging Face folder or a name on the hub.
        out: folder for results.
        data: for Tables 3 and 10: folder of `monet data prepare` with the six programming languages. For others: folder
            with copies of the hub's data sets of the benchmarks; if omitted, they are read from the hub.
        prompts: for Tables 4 and 5: files of prompts.
        problems: for Table 3: MultiPL-E's prompts as files or a folder, or their name on the hub.
        libraries: for Table 3: folders with luaunit.lua and javatuples.jar.
        scorer: for Tables 4 and 5: scorer of the continuations. If no model is named, the table's own classifier is
            used: unitary/toxic-bert for Table 4 (the paper used the Perspective API, which ends on 31 December 2026),
            and ToxiGen-RoBERTa for Table 5, as in the paper.
        allow_code_execution: for Table 3: run the generated programs in the sandbox. The programs are untrusted.
        held_out: choose experts on held-out prompts or questions, which the paper seems not to do.
        controls: random controls of each mask, which the paper does not have. They change none of the compared values.
        limit: questions, problems, prompts or windows of each kind, for a quick look; the values are then not
            comparable.
        gpu: GPU whose hours are estimated: b200, h200, h100, a100, l40s, rtx4090, ...
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps that of the files.
        progress: show bars on standard error.

    Raises:
        ConfigError: there is no such table or GPU, or something needed is missing.
        CheckpointError: there is no such model.
    """
    from monet.eval.paper.estimate import check_gpu
    from monet.eval.reporting import terminal

    check_gpu(gpu)
    request = Request(
        model, out, data, prompts, problems, libraries, scorer, allow_code_execution, held_out, controls, limit,
        gpu, device, dtype, progress,
    )  # fmt: skip
    if table is None:
        _print_all(request)
        return
    if table not in TABLES:
        raise ConfigError(f"no experiment for table {table}; choose from {', '.join(map(str, TABLES))}")
    experiment = TABLES[table]
    wants_model = any(need.name == "weights" for need in experiment.needs)
    if out is None or (wants_model and model is None):
        _print_one(experiment, request)
        return
    result = reproduce(experiment, request)
    terminal.show(result.report())
    print(f"report: {out / f'table-{table}' / 'report.html'}")
