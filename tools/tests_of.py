"""Which test files test a module: the one of its name, then those that import it, directly or through other modules.

python -m tools.tests_of monet/model/router.py eval/core/store.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.imports import EVERYTHING, MODULES, ROOT, imports_of

MOST = 8  # test files that are printed for one module


def room_of(module: str) -> str:
    """The folder of tests that mirrors the room of a module, as a dotted name."""
    return ".".join(["tests", *module.removeprefix("monet.").split(".")[:-1]])


def nearest_tests(module: str, graph: Mapping[str, set[str]]) -> tuple[int, list[str]]:
    """Find the test files closest to a module.

    Args:
        module: dotted name, for example `monet.model.router`.
        graph: the modules that each module imports.
    Returns:
        steps: 0 if a test has the module's name, 1 if tests import the module, 2 if tests import a module that imports
            it, and so on.
        tests: dotted names of the test files, those in the folder that mirrors the module's room first; empty if no
            test reaches the module.
    """
    folder, name = room_of(module), module.rpartition(".")[2]

    def ordered(found: Iterable[str]) -> list[str]:
        return sorted(found, key=lambda test: (test.rpartition(".")[0] != folder, test))

    if named := [test for test in graph if test == f"{folder}.test_{name}"]:
        return 0, named
    steps, level, seen = 0, {module}, {module}
    while level:
        steps += 1
        level = {importer for importer, names in graph.items() if names & level} - seen
        seen |= level
        if found := {one for one in level if one.rpartition(".")[2].startswith("test_")}:
            return steps, ordered(found)
    return steps, []


def main(words: list[str] | None = None) -> int:
    """Print the tests of each named file; return 1 if a file is no module of the package."""
    parser = argparse.ArgumentParser(prog="python -m tools.tests_of", description="Which test files test a module.")
    parser.add_argument("files", nargs="+", type=Path, help="files of monet/, kernels/ or eval/")
    files = parser.parse_args(words).files
    names = {path: module for module, path in MODULES.items()}
    if unknown := [str(file) for file in files if file.resolve() not in names]:
        print(f"no module of this checkout: {', '.join(unknown)}", file=sys.stderr)
        return 1
    graph = imports_of(EVERYTHING)
    for file in files:
        module = names[file.resolve()]
        steps, found = nearest_tests(module, graph)
        if steps == 0:
            how = "has a test of its name"
        elif found:
            how = "tests import it" if steps == 1 else f"tests import it in {steps} steps"
        else:
            how = f"no test imports it by name; see the tests of its room, {room_of(module).replace('.', '/')}/"
        print(f"{file}: {how}")
        for test in found[:MOST]:
            print(f"  {EVERYTHING[test].relative_to(ROOT)}")
        if len(found) > MOST:
            print(f"  and {len(found) - MOST} more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
