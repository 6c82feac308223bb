"""Renders the result of any suite as a page, Markdown, pictures and JSON; each form has one renderer."""

from __future__ import annotations

import importlib
import itertools
import math
import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

from monet.errors import CheckpointError, ConfigError, MonetError
from monet.eval.core.document import Report
from monet.eval.core.results import RESULT_NAME, Result
from monet.files import atomic_write_json
from monet.json_text import read_json

Form = Literal["html", "markdown", "png", "json"]
FORMS: tuple[Form, ...] = ("html", "markdown", "png", "json")
JSON_NAME = "report.json"
_LARGEST = 1e100

# Every result names its "format". For each format: the class that reads it, and the function that makes it a
# `monet.eval.core.document.Report`.
_SUITES = "monet.eval.suites"
FORMATS: dict[str, tuple[str, str]] = {
    "monet-ablation/2": ("monet.eval.ablation.results:AblationResult", "monet.eval.ablation.report:report_of"),
    "monet-curve/2": (f"{_SUITES}.loss.curve:CurveResult", f"{_SUITES}.loss.curve:CurveResult.report"),
    "monet-reproduction/2": (
        "monet.eval.paper.result:ReproductionResult", "monet.eval.paper.result:ReproductionResult.report"
    ),
    "monet-general/2": (
        f"{_SUITES}.questions.general_result:GeneralResult", f"{_SUITES}.questions.general_result:GeneralResult.report"
    ),
    "monet-domains/2": (
        f"{_SUITES}.questions.domains_result:DomainsResult", f"{_SUITES}.questions.domains_result:DomainsResult.report"
    ),
    "monet-facts/1": (f"{_SUITES}.facts.results:FactsResult", f"{_SUITES}.facts.report:report_of"),
    "monet-code/2": (f"{_SUITES}.code.results:CodeResult", f"{_SUITES}.code.report:report_of"),
    "monet-seeds/1": ("monet.eval.reporting.seeds:SeedsResult", "monet.eval.reporting.seeds_report:report_of"),
    "monet-toxicity/2": (f"{_SUITES}.toxicity.results:ToxicityResult", f"{_SUITES}.toxicity.report:report_of"),
}  # fmt: skip


def report_of(result: Result) -> Report:
    """Make the report of any suite's result: tables, heat maps and curves."""
    return _named(FORMATS[result.FORMAT][1])(result)


def load(path: str | os.PathLike[str]) -> Result:
    """Read a suite's result.json, a report.json, or the result in a suite's folder.

    Raises:
        CheckpointError: the file is missing or unreadable, or its format is unknown.
    """
    file = Path(path) / RESULT_NAME if Path(path).is_dir() else Path(path)
    try:
        content = read_json(file, CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; write it with `monet ablate` or a `monet eval` command") from None
    except OSError as error:
        raise CheckpointError(f"{file}: unreadable ({error}); run the command that wrote the file again") from None
    _refuse_huge(content, file)
    name = content.get("format") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in FORMATS:
        raise CheckpointError(f"{file}: unknown format {name!r}; expected one of {', '.join(FORMATS)}")
    try:
        return _class(name).from_json(content)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _refuse_huge(content: Any, file: Path) -> None:
    """Refuse numbers that are too large to draw, because their squares and differences overflow."""
    if isinstance(content, (list, dict)):
        for value in content.values() if isinstance(content, dict) else content:
            _refuse_huge(value, file)
    elif isinstance(content, (int, float)) and math.isfinite(content) and abs(content) > _LARGEST:
        raise CheckpointError(
            f"{file}: the number {content:.3g} is too large for a result; run the command that wrote the file again"
        )


def _class(name: str) -> type[Result]:
    return cast(type[Result], _named(FORMATS[name][0]))


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def write(result: Result | Report, out: str | os.PathLike[str], forms: Sequence[Form] = FORMS) -> list[Path]:
    """Write a report into a folder, replacing files of an earlier one.

    Args:
        result: result of any suite, or its report.
        out: folder, made if it is missing.
        forms: html writes report.html, markdown writes report.md, png writes one file per figure, json writes
            report.json with the suite's whole result.

    Returns:
        Paths of the written files.

    Raises:
        ConfigError: `out` is a file, or a form is unknown.
    """
    from monet.eval.reporting import html, markdown, png

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the report")
    if unknown := [form for form in forms if form not in FORMS]:
        raise ConfigError(f"no report form {', '.join(map(repr, unknown))}; choose from {', '.join(FORMS)}")
    renderers = {"html": html.write, "markdown": markdown.write, "png": png.write, "json": _write_json}
    report = result if isinstance(result, Report) else report_of(result)
    return [path for form in dict.fromkeys(forms) for path in renderers[form](report, folder)]


def _write_json(report: Report, folder: Path) -> list[Path]:
    atomic_write_json(folder / JSON_NAME, report.numbers)
    return [folder / JSON_NAME]


def load_all(paths: Sequence[Path], groups: Sequence[str] | None = None) -> Result:
    """Load one result, or several as one; see `monet.eval.reporting.seeds.compare`.

    Each of several results is named after the part of its path that differs from the other paths.

    Raises:
        CheckpointError: as for `load`.
        ConfigError, DataError: as for `compare`; also if groups are given for a single result, or a path is given
            twice.
    """
    if len(paths) == 1:
        if groups is not None:
            raise ConfigError("--group needs several results, but --result has only one; omit --group")
        return load(paths[0])
    from monet.eval.reporting.seeds import compare

    names = _names(paths)
    return compare({name: load(path) for name, path in zip(names, paths, strict=True)}, groups)


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths without the leading and trailing parts that all of them share."""
    if not paths:
        raise ConfigError("--result is empty; give one or more results")
    parts = [(path.parent if path.name == RESULT_NAME else path).absolute().parts for path in paths]
    if twice := [str(path) for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1]:
        raise ConfigError(f"--result names {twice[0]} twice; give each result once")
    start = _shared(parts)
    end = _shared([own[start:][:0:-1] for own in parts])  # counted from the end; at least one part remains
    names = ["/".join(own[start : len(own) - end]) or own[-1] for own in parts]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """Number of leading parts that all have in common."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))


def run(
    result: Path | list[Path],
    out: Path,
    forms: list[Form] = ["html", "markdown", "png", "json"],  # noqa: B006 - shown in --help, never changed
    group: list[str] | None = None,
) -> None:
    """Turn the result of any evaluation into a self-contained page, Markdown, pictures and JSON.

    The command prints the head of the report, and writes report.html, report.md, report.json and figure-01-...png.

    Several results (`--result A B C`) give one report that compares the spread over training seeds with the spread over
    text. The results must be of one kind (monet ablate, eval neurons, eval code, eval general, eval domains, eval facts
    or eval toxicity) and measured on the same text. Models that differ in more than their training seed form separate
    groups in the same tables. The order of the results does not matter.

    Args:
        result: result.json, a report.json, or the folder of a suite. Several results of one kind, measured on the same
            text (A B C), give one report that compares the spread over training seeds with the spread over text.
        out: folder for the report; an earlier report in it is replaced.
        forms: any of html, markdown, png and json; markdown links to the pictures of png.
        group: with several results, one group name per result, in the same order; results with the same name form a
            group. If omitted, results whose models differ only in their training seed form a group.

    Raises:
        CheckpointError: RESULT is missing or not a result.
        ConfigError: OUT is a file, or the results are of several kinds.
        DataError: the results were measured on different text, or two of them on the same model.
    """
    from monet.eval.reporting import terminal

    paths = result if isinstance(result, list) else [result]
    told = ", ".join(map(str, paths))
    try:
        report = report_of(load_all(paths, group))
        files = write(report, out, forms)
        terminal.show(report)
    except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, MonetError):
            raise
        raise CheckpointError(
            f"{told}: the numbers or texts of this result are inconsistent ({type(error).__name__}: "
            f"{str(error)[:200]}); run the command that wrote it again, or use --debug to see where it fails"
        ) from error
    for path in files:
        print(f"report: {path}")
