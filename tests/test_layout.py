"""The shape of the tree: who may import whom, no cycles, small files, folders that must stay without __init__.py."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"monet": ROOT / "monet", "monet.kernels": ROOT / "kernels", "monet.eval": ROOT / "eval"}
OTHERS = [ROOT / "benchmarks", ROOT / "constraints", ROOT / "corpus", ROOT / "tests", ROOT / "tools"]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".json", ".cfg", ".txt"}
MAX_LINES = 400


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_name(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join([package, *parts]).removesuffix(".__init__")


MODULES = {module_name(package, path): path for package in PACKAGES for path in python_files(PACKAGES[package])}
SCRIPTS = sorted([*ROOT.glob("*.py"), *(path for folder in OTHERS for path in python_files(folder))])


def imported(source: str, module: str = "", *, deferred: bool = True) -> set[str]:
    """Every module named by an import; with `deferred` false only those that run when the module is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            # `from monet import masks` names a module too, where it is one
            found.update({base} | {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys())
        if not deferred:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                return
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                for child in node.orelse:
                    visit(child)
                return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


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
    """`kernels` is the name of a Hugging Face package, `eval` of a builtin; both are ours only below `monet`."""
    bare = {name for name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] in ("kernels", "eval")}
    assert not bare, f"{path}: write monet.{min(bare)}"


def test_no_import_cycles():
    graph = {
        module: imported(path.read_text(encoding="utf-8"), module, deferred=False) & MODULES.keys() - {module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "import cycle: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_namespace_folders_have_no_init():
    """A root `kernels/__init__.py` would be taken for Hugging Face's package by `import transformers`."""
    found = [folder for folder in ("kernels", "eval") if (ROOT / folder / "__init__.py").exists()]
    assert not found, f"remove __init__.py from {found}: see docs/architecture.md"


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it by what it does"


def test_nothing_names_a_machine():
    """Paths of one machine do not belong in the tree: not a home, not a work folder, not a temporary one."""
    pattern = re.compile(r"(?<![\w.~}/<-])/(work|home|root|Users|tmp|mnt|opt|var)/[\w.-]+")
    hidden = {".git", "runs", "data", "build", "dist", "__pycache__", "node_modules"}
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
    """docs/architecture.md has one line for each folder with code, and none for a folder that is gone."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    on_map = set(re.findall(r"^\| `([^`]+)/` \|", text, flags=re.MULTILINE))
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in [*MODULES.values(), *SCRIPTS]} - {"."}
    rooms = {room for room in rooms if not room.startswith("tests/")}
    assert not rooms - on_map, f"add to the map of docs/architecture.md: {sorted(rooms - on_map)}"
    gone = sorted(room for room in on_map if not (ROOT / room).is_dir())
    assert not gone, f"remove from the map of docs/architecture.md: {gone}"
