"""The structure of the tree: allowed imports, no cycles, small files, folders that must not have an __init__.py."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from tools.imports import EVERYTHING, MODULES, ROOT, SCRIPTS, imported, imports_of, python_files

TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".json", ".cfg", ".txt"}
MAX_LINES = 400


def test_the_reader_of_imports_sees_what_it_should():
    source = "import a.b\nfrom . import c\nif TYPE_CHECKING:\n import d\nelse:\n import e\ndef f():\n import g\n"
    assert imported(source, "monet.data.x") == {"a.b", "monet.data", "d", "e", "g"}
    assert imported(source, "monet.data.x", deferred=False) == {"a.b", "monet.data", "e"}
    assert "monet.errors" in imported("from monet import errors")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    names = imported(MODULES[module].read_text(encoding="utf-8"), module)
    ours = {name for name in names if name.split(".")[0] == "monet"}
    if module.startswith("monet.kernels"):
        allowed = {"torch", "triton", "numpy", "monet", "__future__"} | sys.stdlib_module_names
        strangers = {name for name in names if name.split(".")[0] not in allowed}
        strangers |= {name for name in ours if not name.startswith("monet.kernels")}
        assert not strangers, f"{module} may import torch, triton and numpy only, not {sorted(strangers)}"
    elif not module.startswith("monet.eval"):
        wrong = {name for name in ours if name.startswith("monet.eval")}
        assert not wrong, f"{module} is below monet.eval and must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_are_never_imported_bare(path):
    """`kernels` is the name of a Hugging Face package, `eval` of a builtin; both are our modules only below `monet`."""
    bare = {name for name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] in ("kernels", "eval")}
    assert not bare, f"{path}: write monet.{min(bare)}"


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other; each group is sorted; a graph without cycles has no groups."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for target in graph.get(waiting.pop(), set()) - found:
                found.add(target)
                waiting.append(target)
        return found

    reach = {node: reached(node) for node in graph}
    groups = {tuple(sorted(other for other in reach[node] if node in reach.get(other, ()))) for node in graph}
    return sorted(list(group) for group in groups if group)


def room_of(module: str) -> str:
    """The folder that a module is in, as a dotted name; the package itself for its top level."""
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


def rooms_graph(graph: Mapping[str, set[str]], rooms: Callable[[str], str] = room_of) -> dict[str, set[str]]:
    """The rooms that each room imports from, without the package `monet` itself, which only lists names."""
    found: dict[str, set[str]] = {}
    for module, targets in graph.items():
        if module != "monet":
            room = found.setdefault(rooms(module), set())
            room |= {rooms(target) for target in targets if target != "monet"} - {rooms(module)}
    return found


def suites_in_suites(graph: Mapping[str, set[str]], suites: Mapping[str, str]) -> list[str]:
    """Imports between suites; a suite never imports another suite.

    Args:
        graph: see `imports_of`.
        suites: the suite that a module belongs to, or a prefix of modules that ends in a dot.
    """
    return [
        f"{module} ({suite}) imports {target} ({other})"
        for module in sorted(graph)
        if (suite := _room_in(suites, module))
        for target in sorted(graph[module])
        if (other := _room_in(suites, target)) and other != suite
    ]


def suites_in_baselines(
    graph: Mapping[str, set[str]], suites: Mapping[str, str], baselines: Mapping[str, str]
) -> list[str]:
    """Imports of suites in baselines; a baseline adds an Intervention, never a suite. Arguments as above."""
    return [
        f"{module} ({baseline}) imports {target} ({suite})"
        for module in sorted(graph)
        if (baseline := _room_in(baselines, module))
        for target in sorted(graph[module])
        if (suite := _room_in(suites, target))
    ]


def _room_in(rooms: Mapping[str, str], module: str) -> str | None:
    prefixes = [name for name in rooms if module == name or (name.endswith(".") and module.startswith(name))]
    return rooms[max(prefixes, key=len)] if prefixes else None


SUITES = {f"monet.eval.suites.{name}.": name for name in ("loss", "questions", "facts", "code", "toxicity")}
BASELINES = {"monet.eval.baselines.": "baselines"}


def test_no_import_cycles():
    assert cycles(imports_of(EVERYTHING)) == []


def test_rooms_have_no_cycles_either():
    """The folders of kernels/ count as one room: an operator and its implementations import each other."""

    def room(module: str) -> str:
        return "monet.kernels" if module.startswith("monet.kernels") else room_of(module)

    assert cycles(rooms_graph(imports_of(MODULES), room)) == []


# Each room imports only itself and rooms above it in this list. An entry holds for everything below its name, unless a
# longer entry does. Suites and baselines have stricter rules, see below.
ORDER = (
    "tests.tolerances",
    "monet.kernels",
    "monet",
    "monet.masks",
    "monet.model",
    "monet.costs",
    "monet.data",
    "monet.data.documents",
    "monet.data.tokens",
    "monet.data.storage",
    "monet.data.preparation",
    "monet.data.loading",
    "monet.training.private",
    "monet.training.ranks",
    "monet.training.watch",
    "monet.training.checkpoints",
    "monet.training",
    "monet.planning",
    "monet.convert.bundle",
    "monet.convert",
    "monet.convert.dense",
    "monet.serve",
    "monet.doctor",
    "monet.eval.core",
    "monet.eval.attribution.statistics",
    "monet.eval.attribution",
    "monet.eval.reporting",
    "monet.eval.ablation",
    "monet.eval.choices",
    "monet.eval.scorers",
    "monet.eval.sandbox",
    "monet.eval.baselines",
    "monet.eval.suites",
    "monet.eval.paper",
    "monet.eval.index",
    "monet.eval.inspection",
    "monet.eval.explain",
    "monet.eval.view",
    "constraints",
    "corpus",
    "benchmarks",
    "benchmarks.gpu",
    "benchmarks.gpu_suite",
    "studies.removal",
    "studies",
    "tools",
    "setup",
    "train",
    "tests",
)


def upward_imports(graph: Mapping[str, set[str]], order: Sequence[str]) -> list[str]:
    """Imports of a room in a later one. Arguments: see `imports_of` and `ORDER`."""

    def place(module: str) -> int:
        entries = [entry for entry in order if f"{module}.".startswith(f"{entry}.")]
        assert entries, f"{module} is in no room of ORDER; add its room"
        return order.index(max(entries, key=len))

    return [
        f"{module} imports {target}"
        for module in sorted(graph)
        for target in sorted(graph[module])
        if place(target) > place(module)
    ]


def test_imports_never_point_upward():
    graph = imports_of(EVERYTHING)
    del graph["monet"]  # it lists names of its rooms
    found = upward_imports(graph, ORDER)
    assert not found, f"{len(found)} of {sum(map(len, graph.values()))} imports point upward:\n" + "\n".join(found)


def test_an_import_that_points_upward_is_found():
    graph = {"a.b.x": {"a.y", "c"}, "a.y": {"a.b.x"}, "c": {"a.y", "c.d"}, "c.d": set()}
    assert upward_imports(graph, ["a.b", "a", "c"]) == ["a.b.x imports a.y", "a.b.x imports c"]
    with pytest.raises(AssertionError, match="c is in no room"):
        upward_imports(graph, ["a"])


def test_no_suite_imports_another_suite():
    assert suites_in_suites(imports_of(MODULES), SUITES) == []


def test_a_baseline_imports_no_suite():
    assert suites_in_baselines(imports_of(MODULES), SUITES, BASELINES) == []


def test_cycles_are_found_whatever_kind_of_import_they_are_made_of(tmp_path):
    sources = {
        "monet.a": "def f():\n from monet import b\n",
        "monet.b": "if TYPE_CHECKING:\n from monet import c\n",
        "monet.c": "import monet.a\n",
        "monet.d": "import monet.c\n",
    }
    graph = {}
    for module, source in sources.items():
        names = {node for node in sources if node.rpartition(".")[2] in source.split()} | (
            imported(source, module) & sources.keys()
        )
        graph[module] = names - {module}
    assert cycles(graph) == [["monet.a", "monet.b", "monet.c"]]
    assert cycles({"a": {"b"}, "b": set()}) == []


def test_rules_of_suites_and_baselines_are_read():
    graph = {"m.code.x": {"m.loss", "m.core"}, "m.neurons": {"m.loss", "m.core"}, "m.loss": {"m.core"}, "m.core": set()}
    suites, baselines = {"m.code.": "code", "m.loss": "loss"}, {"m.neurons": "neurons"}
    assert suites_in_suites(graph, suites) == ["m.code.x (code) imports m.loss (loss)"]
    assert suites_in_baselines(graph, suites, baselines) == ["m.neurons (neurons) imports m.loss (loss)"]


def private_names(sources: Iterable[str]) -> set[str]:
    """Names with a leading underscore that sources define: in modules, in classes, or on `self`."""
    found: set[str] = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.endswith("_")}


def private_names_set(source: str) -> set[str]:
    """Names with a leading underscore that a test sets in another object, also in the source of another process.

    `setattr(x, "_name", v)`, `setattr("x._name", v)` and `x._name = v` count; `self._name = v` does not.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "setattr":
            names = [word.value for word in node.args[:2] if isinstance(word, ast.Constant)]
            found |= {name.rpartition(".")[2] for name in names if isinstance(name, str)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) != "self":
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            with contextlib.suppress(SyntaxError):
                found |= private_names_set(node.value)
    return {name for name in found if name.startswith("_") and not name.endswith("_")}


def test_no_test_sets_a_private_name_of_ours():
    """What tests shrink or replace is public; if a room has several such sizes, they are in its `limits.py`."""
    product = [path for path in [*MODULES.values(), *SCRIPTS] if ROOT / "tests" not in path.parents]
    ours = private_names(path.read_text(encoding="utf-8") for path in product)
    wrong = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in python_files(ROOT / "tests")
        if (names := private_names_set(path.read_text(encoding="utf-8")) & ours)
    }
    assert not wrong, f"make these names public: {wrong}"


def test_private_names_are_read():
    source = "_SIZE: int = 1\nclass A:\n _kind = 2\n def f(self):\n  self._own, a._b = 3, 4\ndef _g(): 1\n__all__ = []"
    assert private_names([source]) == {"_SIZE", "_kind", "_own", "_g"}
    script = repr("from a import b\nb._C, b.D = 1, 2")
    source = f"{script}\npatch.setattr(m, '_A', 1)\npatch.setattr('m._B', 1)\nself._own = x._e = 1\nx.__class__ = X"
    assert private_names_set(source) == {"_A", "_B", "_C", "_e"}


def test_namespace_folders_have_no_init():
    """`import transformers` would mistake a root `kernels/__init__.py` for Hugging Face's package."""
    found = [folder for folder in ("kernels", "eval") if (ROOT / folder / "__init__.py").exists()]
    assert not found, f"remove __init__.py from {found}: see docs/architecture.md"


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it by what it does"


def test_nothing_names_a_machine():
    """The tree must not contain paths of one machine: no home folder, work folder or temporary folder."""
    pattern = re.compile(r"(?<![\w.~}/<-])/(work|home|root|Users|tmp|mnt|opt|var)/[\w.-]+")
    hidden = {".git", "runs", "data", "build", "dist", "__pycache__", "node_modules", ".pytest_cache", ".hypothesis"}
    wrong = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.suffix not in TEXT_SUFFIXES and path.name not in ("Makefile", "run"):
            continue
        if not path.is_file() or parts[0] in hidden or parts[0].startswith(".venv") or "__pycache__" in parts:
            continue
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if found := pattern.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {found.group()}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_on_the_map():
    """docs/architecture.md has one line for each folder with code, and no line for a folder that does not exist."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    on_map = set(re.findall(r"^\| `([^`]+)/` \|", text, flags=re.MULTILINE))
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in [*MODULES.values(), *SCRIPTS]} - {"."}
    rooms = {room for room in rooms if not room.startswith("tests/")}
    assert not rooms - on_map, f"add to the map of docs/architecture.md: {sorted(rooms - on_map)}"
    gone = sorted(room for room in on_map if not (ROOT / room).is_dir())
    assert not gone, f"remove from the map of docs/architecture.md: {gone}"
