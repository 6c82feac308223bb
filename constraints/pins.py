"""Writes the package versions for the Makefile's environments; run with the Python of one of them.

    python constraints/pins.py write             write both files of this folder; `make pins` does so
    python constraints/pins.py newest EXTRA ...  print the requirements without upper bounds, except torch's

tested.txt has every package of the running environment at its exact version. oldest.txt has every direct dependency at
the lowest version that pyproject.toml allows. Both are constraints files of pip: they name versions and install no
package. They contain no local versions (`+cpu`), no paths and no addresses, so they work on any platform and any build
of torch.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

import tomllib  # pyright: ignore[reportMissingImports]  # Python 3.11
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parent
PYPROJECT = HERE.parent / "pyproject.toml"
OURS = "monet-experts"
TESTS = "browser,dev,quantisation"
# pip comes with Python and installs the others.
LEFT_OUT = {OURS, "pip"}
LINUX_ONLY = ("cuda-", "nvidia-", "triton")

TESTED_HEADER = """\
# Written by `make pins`. Do not edit.
# The complete set of packages that `make test` ran with, under Python {python}. Python 3.11 or later is needed.
# triton is the release that the CUDA build of this torch requires; the CPU build requires none.
"""
OLDEST_HEADER = """\
# Written by `make pins`. Do not edit.
# The lowest version that pyproject.toml allows for each package it names. `make test-oldest` runs the tests with them.
"""


def tested(distributions: list[tuple[str, str]]) -> list[str]:
    """Return one pin per (name, version), sorted by name, without local versions; marks packages of Linux only."""
    versions = {canonicalize_name(name): Version(version).public for name, version in distributions}
    return [
        f"{name}=={version}" + ("; sys_platform == 'linux'" if name.startswith(LINUX_ONLY) else "")
        for name, version in sorted(versions.items())
        if name not in LEFT_OUT
    ]


def requirements(project: dict, extra: str | None = None) -> list[Requirement]:
    """Return the requirements of `project`, the [project] table.

    Args:
        project: the table.
        extra: names of extras, separated by commas; extras that they name are included.
    """
    found, queue = [], [*project["dependencies"], *([f"{OURS}[{extra}]"] if extra else [])]
    while queue:
        requirement = Requirement(queue.pop())
        if requirement.name == OURS:
            queue += [line for name in requirement.extras for line in project["optional-dependencies"][name]]
        else:
            found.append(requirement)
    return found


def newest(project: dict, extra: str | None = None) -> list[str]:
    """Return the requirements without upper bounds, sorted; torch keeps its bound, so that its build stays the same."""
    found = requirements(project, extra)
    for requirement in found:
        if requirement.name != "torch":
            requirement.specifier = SpecifierSet(
                ",".join(str(part) for part in requirement.specifier if part.operator == ">=")
            )
    return sorted(map(str, found))


def oldest(project: dict) -> list[str]:
    """Return one pin per requirement of `project`, the [project] table, and of the tests' extras, at its lower bound.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    pins = {}
    for requirement in requirements(project, TESTS):
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {requirement} needs one lower bound, written with >=")
        name = canonicalize_name(requirement.name)
        if name not in LEFT_OUT:
            pins[name] = f"{name}=={bounds[0]}" + (f"; {requirement.marker}" if requirement.marker else "")
    return [pins[name] for name in sorted(pins)]


def read_project() -> dict:
    """Return the [project] table of pyproject.toml."""
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]


def oldest_text() -> str:
    """Return the content of oldest.txt."""
    return OLDEST_HEADER + "\n".join(oldest(read_project())) + "\n"


def tested_text() -> str:
    """Return the content of tested.txt after a test run in the running environment."""
    found = [(item.metadata["Name"], item.version) for item in importlib.metadata.distributions()]
    header = TESTED_HEADER.format(python=".".join(platform.python_version_tuple()[:2]))
    return header + "\n".join(tested(found)) + "\n"


def main(words: list[str]) -> None:
    match words:
        case ["write"]:
            (HERE / "tested.txt").write_text(tested_text(), encoding="utf-8")
            (HERE / "oldest.txt").write_text(oldest_text(), encoding="utf-8")
        case ["newest", *extras]:
            print(*newest(read_project(), ",".join(extras)), sep="\n")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
