"""Results of any suite for people: a page, Markdown, pictures, the numbers as JSON; one renderer a form."""

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

# A result names its "format"; for each, the class that reads it, and what tells it as a
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
    "monet-code/2": (f"{_SUITES}.code.results:CodeResult", f"{_SUITES}.code.report:report_of"),
    "monet-seeds/1": ("monet.eval.reporting.seeds:SeedsResult", "monet.eval.reporting.seeds_report:report_of"),
    "monet-toxicity/2": (f"{_SUITES}.toxicity.results:ToxicityResult", f"{_SUITES}.toxicity.report:report_of"),
}  # fmt: skip


def report_of(result: Result) -> Report:
    """Tables, heat maps and curves of any suite's result."""
    return _named(FORMATS[result.FORMAT][1])(result)


def load(path: str | os.PathLike[str]) -> Result:
    """Read a suite's result.json, a report.json, or the result in a suite's folder.

    Raises:
        CheckpointError: missing or unreadable file, or a format that is not known.
    """
    file = Path(path) / RESULT_NAME if Path(path).is_dir() else Path(path)
    try:
        content = read_json(file, CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; write it with `monet ablate` or a `monet eval` command") from None
    except OSError as error:
        raise CheckpointError(f"{file}: unreadable ({error}); run the command that wrote it again") from None
    _refuse_huge(content, file)
    name = content.get("format") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in FORMATS:
        raise CheckpointError(f"{file}: format {name!r} where one of {', '.join(FORMATS)} is read")
    try:
        return _class(name).from_json(content)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _refuse_huge(content: Any, file: Path) -> None:
    """Refuse numbers whose squares and differences no page or drawing can hold."""
    if isinstance(content, (list, dict)):
        for value in content.values() if isinstance(content, dict) else content:
            _refuse_huge(value, file)
    elif isinstance(content, (int, float)) and math.isfinite(content) and abs(content) > _LARGEST:
        raise CheckpointError(f"{file}: the number {content:.3g} is no result; run the command that wrote it again")


def _class(name: str) -> type[Result]:
    return cast(type[Result], _named(FORMATS[name][0]))


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def write(result: Result | Report, out: str | os.PathLike[str], forms: Sequence[Form] = FORMS) -> list[Path]:
    """Write a report into a folder, replacing files of an earlier one.

    Args:
        result: of any suite, or a report made of it.
        out: folder; made if it is missing.
        forms: html writes report.html, markdown report.md, png a file for each figure, json report.json, which holds
            the suite's whole result.

    Returns:
        The files.

    Raises:
        ConfigError: `out` is a file, or no such form.
    """
    from monet.eval.reporting import html, markdown, png

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the report")
    if unknown := [form for form in forms if form not in FORMS]:
        raise ConfigError(f"no report as {', '.join(map(repr, unknown))}; there are {', '.join(FORMS)}")
    renderers = {"html": html.write, "markdown": markdown.write, "png": png.write, "json": _write_json}
    report = result if isinstance(result, Report) else report_of(result)
    return [path for form in dict.fromkeys(forms) for path in renderers[form](report, folder)]


def _write_json(report: Report, folder: Path) -> list[Path]:
    atomic_write_json(folder / JSON_NAME, report.numbers)
    return [folder / JSON_NAME]


def load_all(paths: Sequence[Path], groups: Sequence[str] | None = None) -> Result:
    """One result, or several as one; see `monet.eval.reporting.seeds.compare`.

    Each of several is named by that part of its path that tells it from the others.

    Raises:
        CheckpointError: as `load`.
        ConfigError, DataError: as `compare`; also groups of a single result, or a path that is given twice.
    """
    if len(paths) == 1:
        if groups is not None:
            raise ConfigError("--group names groups of several results, and --result has one; leave --group out")
        return load(paths[0])
    from monet.eval.reporting.seeds import compare

    names = _names(paths)
    return compare({name: load(path) for name, path in zip(names, paths, strict=True)}, groups)


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths without the parts in front and at the end that all of them share."""
    if not paths:
        raise ConfigError("--result names no result; give one or several")
    parts = [(path.parent if path.name == RESULT_NAME else path).absolute().parts for path in paths]
    if twice := [str(path) for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1]:
        raise ConfigError(f"--result names {twice[0]} twice; give each result once")
    start = _shared(parts)
    end = _shared([own[start:][:0:-1] for own in parts])  # from the end; one part stays
    names = ["/".join(own[start : len(own) - end]) or own[-1] for own in parts]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many parts at the start all have in common."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))


def run(
    result: Path | list[Path],
    out: Path,
    forms: list[Form] = ["html", "markdown", "png", "json"],  # noqa: B006 - shown in --help, never changed
    group: list[str] | None = None,
) -> None:
    """Turn the result of any evaluation into one page that needs no network, Markdown, pictures and JSON.

    Prints the head of the report, and writes report.html, report.md, report.json and figure-01-...png.

    Several results (`--result A B C`) give one report with the spread over training seeds beside the spread over text.
    They must be of one kind (monet ablate, eval neurons, eval code, eval general, eval domains or eval toxicity) and
    measured on the same text. Models that differ in more than their training seed are groups of their own, in the same
    tables. The order of the results does not matter.

    Args:
        result: result.json, a report.json, or the folder of a suite. Several of one kind that were measured on the same
            text (A B C) give one report: the spread over training seeds beside the spread over text.
        out: folder for the report; an earlier one there is replaced.
        forms: which of html, markdown, png and json to write; markdown names the pictures of png.
        group: with several results, one name for each in their order; results of one name are one group. Without it,
            results whose models differ in their training seed only are one group.

    Raises:
        CheckpointError: RESULT is missing or not a result.
        ConfigError: OUT is a file, or the results are of several kinds.
        DataError: the results were measured on other text, or two of them on one model.
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
            f"{told}: the numbers or texts of this result do not fit together ({type(error).__name__}:"
            f" {str(error)[:200]}); run the command that wrote it again, or see where it fails with --debug"
        ) from error
    for path in files:
        print(f"report: {path}")
