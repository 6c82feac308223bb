"""Writes the files of pins in this folder; `make pins` calls it with the Python of a new environment.

tested.txt: every package of the running environment at its exact version.
oldest.txt: every direct dependency at the lowest version that pyproject.toml allows.

Both are constraints files of pip: they name versions and install nothing. They hold no local versions (`+cpu`), no
paths and no addresses, so they serve on any platform and with any build of torch.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import tomllib  # pyright: ignore[reportMissingImports]  # Python 3.11
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parent
PYPROJECT = HERE.parent / "pyproject.toml"
OURS = "monet-experts"
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
    """One pin for each (name, version), sorted by name, without local versions; markers for packages of Linux only."""
    versions = {canonicalize_name(name): Version(version).public for name, version in distributions}
    return [
        f"{name}=={version}" + ("; sys_platform == 'linux'" if name.startswith(LINUX_ONLY) else "")
        for name, version in sorted(versions.items())
        if name not in LEFT_OUT
    ]


def oldest(project: dict) -> list[str]:
    """One pin for each requirement of `project`, the [project] table, and of its `dev` extra, at its lower bound.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    pins = {}
    queue = [*project["dependencies"], f"{OURS}[dev]"]
    while queue:
        requirement = Requirement(queue.pop())
        if requirement.name == OURS:
            queue += [line for extra in requirement.extras for line in project["optional-dependencies"][extra]]
            continue
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {requirement} needs one lower bound, written with >=")
        name = canonicalize_name(requirement.name)
        if name not in LEFT_OUT:
            pins[name] = f"{name}=={bounds[0]}" + (f"; {requirement.marker}" if requirement.marker else "")
    return [pins[name] for name in sorted(pins)]


def oldest_text() -> str:
    """What oldest.txt has to hold."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return OLDEST_HEADER + "\n".join(oldest(project)) + "\n"


def tested_text() -> str:
    """What tested.txt has to hold after a test run in the running environment."""
    found = [(item.metadata["Name"], item.version) for item in importlib.metadata.distributions()]
    header = TESTED_HEADER.format(python=".".join(platform.python_version_tuple()[:2]))
    return header + "\n".join(tested(found)) + "\n"


if __name__ == "__main__":
    (HERE / "tested.txt").write_text(tested_text(), encoding="utf-8")
    (HERE / "oldest.txt").write_text(oldest_text(), encoding="utf-8")
