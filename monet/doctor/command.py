"""The `monet doctor` verb: shows installed packages and the machine, and tests that Monet computes correctly."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from monet.doctor import machine, packages
from monet.doctor.diagnosis import Diagnosis
from monet.doctor.findings import Check, Finding, find

_HELP = """Inspect this installation and test it.

Prints the installed versions next to the allowed and the tested versions, the devices, the compiler and the optional
parts. Then a self-test compares a tiny model, and every kernel that this machine can run, with reference numbers. The
first run on a machine also builds the C++ kernels, which takes about ten seconds.

The exit code is 0 if no check failed, 1 otherwise. Each failed check prints how to fix it. Warnings, skipped checks
and missing optional parts do not count as failures."""


def run(words: list[str]) -> int:
    """Run the command line.

    Args:
        words: the words after `monet doctor`.

    Returns:
        0 if no check failed, 1 if one failed, 2 for unknown words.
    """
    parser = argparse.ArgumentParser("monet doctor", description=_HELP, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object on stdout")
    try:
        as_json = parser.parse_args(words).json
    except SystemExit as stop:  # --help, or an unknown word
        return stop.code if isinstance(stop.code, int) else 2
    if as_json:
        with contextlib.redirect_stdout(sys.stderr):  # stdout must not contain output from libraries
            diagnosis = examine()
        print(json.dumps(diagnosis.as_json(), indent=1))
    else:
        from monet.doctor import report

        diagnosis = examine(report.show_surroundings, report.show_finding)
        report.show_verdict(diagnosis)
    return 1 if diagnosis.failed else 0


def examine(
    surroundings: Callable[[Diagnosis], None] | None = None, each: Callable[[Finding], None] | None = None
) -> Diagnosis:
    """Inspect everything and run the self-test.

    Args:
        surroundings: called with versions, devices and optional parts before the self-test starts.
        each: called with the finding of each check as soon as the check ends.
    """
    required = packages.required()
    found: dict[str, Any] = {}

    def look_at_devices() -> str:
        found.update(machine.devices())
        gpus = len(found["gpus"])
        return f"torch uses the CPU{f' and {gpus} GPU' if gpus else ''}"

    first = [
        Check("installation", packages.check_installation, "pip install -e . in Monet's folder"),
        *(package.check() for package in required),
        Check("devices", look_at_devices, packages.fix_of(required, "torch")),
    ]
    findings = [find(check) for check in first]
    diagnosis = Diagnosis(
        required, found, machine.compiler(), machine.variables(), machine.optional_parts(packages.of_extras()), findings
    )
    extras = [package for package in packages.of_extras() if package.installed is not None]
    diagnosis.checks += [find(package.check()) for package in extras]
    if surroundings is not None:
        surroundings(diagnosis)
    for check in self_test(required):
        finding = find(check)
        diagnosis.checks.append(finding)
        if each is not None:
            each(finding)
    return diagnosis


def self_test(required: list[packages.Package]) -> Iterator[Check]:
    """The checks that compute something. Their modules are imported when they run, since an import can fail too.

    Args:
        required: packages with their bounds, which the fixes name.
    """
    libraries = packages.fix_of(required, "torch", "transformers")
    triton = (
        f"{packages.fix_of(required, 'triton')}; until then set MONET_KERNELS=torch to run without Triton, more slowly"
    )
    without = "set MONET_CPP=0 to run without the C++ kernels, more slowly"

    chosen = [name for name in machine.variables() if name.startswith("MONET_")]

    def check(name: str, module: str, function: str, fix: str, *arguments: str) -> Check:
        def run() -> str:
            return getattr(importlib.import_module(f"monet.doctor.{module}"), function)(*arguments)

        return Check(name, run, f"{fix}; or unset {', '.join(chosen)}" if chosen else fix)

    yield check("golden logits", "selftest", "golden_logits", libraries)
    yield check("cached generation", "selftest", "cached_generation", packages.fix_of(required, "transformers"))
    yield check("mask laws", "selftest", "mask_laws", libraries)
    torch_fix = packages.fix_of(required, "torch")
    yield check("routing, plain torch", "kernel_paths", "routing", torch_fix, "torch")
    yield check("expert layers, plain torch", "kernel_paths", "mixing", torch_fix, "torch")
    yield check("active experts, plain torch", "kernel_paths", "active", torch_fix, "torch")
    yield check("active experts, C++", "kernel_paths", "active", without, "cpp")
    yield check("matrix products, torch", "kernel_paths", "torch_products", torch_fix)
    yield check("matrix products, oneDNN", "kernel_paths", "onednn_products", torch_fix)
    yield check("routing, Triton", "kernel_paths", "routing", triton, "triton")
    yield check("expert layers, Triton", "kernel_paths", "mixing", triton, "triton")
    yield check("active experts, Triton", "kernel_paths", "active", triton, "triton")
