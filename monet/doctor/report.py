"""Prints a diagnosis on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monet.doctor.diagnosis import Diagnosis
from monet.doctor.findings import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
_NAME_WIDTH = 28


def show_surroundings(diagnosis: Diagnosis) -> None:
    """Print versions, devices and optional parts, and the findings of the checks that have run."""
    console = _console()
    findings = {finding.name: finding for finding in diagnosis.checks}
    versions = _table("Versions", "package", "installed", "allowed", "tested", "")
    for package in diagnosis.versions:
        status = findings[f"version of {package.name}"].status
        cells = (package.name, package.installed or "absent", package.bounds or "any", package.tested or "")
        versions.add_row(*map(Text, cells), Text(status, _STYLES[status]))
    _print(console, versions)
    _show_devices(console, diagnosis)
    parts = _table("Optional parts", "part", "found", "needed for", "to install")
    for part in diagnosis.optional:
        absent = Text("absent", "dim")
        install = "" if part.found else part.install
        parts.add_row(Text(part.name), Text(part.found) if part.found else absent, Text(part.needed_for), Text(install))
    _print(console, parts)
    console.print(Text("Checks", "italic"))
    for finding in diagnosis.checks:
        if not finding.name.startswith("version of") or finding.status != "ok":  # those are in the table
            show_finding(finding)


def _show_devices(console: Console, diagnosis: Diagnosis) -> None:
    cpu = diagnosis.devices.get("cpu")
    if cpu:
        size = f"{cpu['cores']} cores, {cpu['memory_gib']} GiB"
        _line(console, "CPU", f"{cpu['name']}, {size}; torch uses {cpu['capability']} and {cpu['threads']} threads")
        _line(console, "features", ", ".join(cpu["features"]) or "none that torch knows")
        for number, gpu in enumerate(diagnosis.devices["gpus"]):
            size = f"{gpu['memory_gib']} GiB, compute capability {gpu['capability']}"
            _line(console, f"GPU {number}", f"{gpu['name']}, {size}")
        cuda = diagnosis.devices["cuda_of_torch"]
        if not diagnosis.devices["gpus"]:
            _line(console, "GPU", f"none; torch is built {'for CUDA ' + cuda if cuda else 'without CUDA'}")
    else:
        _line(console, "devices", "torch cannot list them; see the check below")
    tools = diagnosis.compiler
    compiler = ", ".join(filter(None, (tools["compiler"], tools["version"]))) or "absent"
    _line(console, "compiler", f"{compiler}; ninja: {tools['ninja'] or 'absent'}")
    if diagnosis.variables:
        _line(console, "set", ", ".join(f"{name}={value}" for name, value in diagnosis.variables.items()))
    console.print()


def _line(console: Console, name: str, words: str) -> None:
    console.print(Text(f"{name:<10}{words}"), soft_wrap=True)


def show_finding(finding: Finding) -> None:
    """Print a finding as one line, with its fix."""
    line = Text.assemble(
        (f"{finding.status:<8}", _STYLES[finding.status]),
        f"{finding.name:<{_NAME_WIDTH}}{finding.seconds:5.1f} s  {finding.detail}",
    )
    if finding.fix:
        line.append_text(Text.assemble("; fix: ", (finding.fix, "bold")))
    _console().print(line, soft_wrap=True)


def show_verdict(diagnosis: Diagnosis) -> None:
    """Print the totals."""
    counts = {status: sum(finding.status == status for finding in diagnosis.checks) for status in _STYLES}
    seconds = sum(finding.seconds for finding in diagnosis.checks)
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    _console().print(f"{words} in {seconds:.0f} s", soft_wrap=True)


def _console() -> Console:
    return Console(highlight=False, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _print(console: Console, table: Table) -> None:
    """Print a table; a file or a pipe gets whole rows of any width, a terminal folds them."""
    if not console.is_terminal:
        wide = console.options.update(width=10_000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)
