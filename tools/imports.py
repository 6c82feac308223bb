"""The modules of this checkout, and what each imports, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"monet": ROOT / "monet", "monet.kernels": ROOT / "kernels", "monet.eval": ROOT / "eval"}
OTHERS = [ROOT / "benchmarks", ROOT / "constraints", ROOT / "corpus", ROOT / "studies", ROOT / "tests", ROOT / "tools"]


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_name(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join([package, *parts]).removesuffix(".__init__")


MODULES = {module_name(package, path): path for package in PACKAGES for path in python_files(PACKAGES[package])}
SCRIPTS = sorted([*ROOT.glob("*.py"), *(path for folder in OTHERS for path in python_files(folder))])
EVERYTHING = MODULES | {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SCRIPTS
}


def imported(source: str, module: str = "", *, deferred: bool = True) -> set[str]:
    """Every module named by an import; if `deferred` is false, only imports that run when the module is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            # `from monet import masks` names a module too, where it is one
            found.update({base} | {f"{base}.{alias.name}" for alias in node.names} & EVERYTHING.keys())
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


def imports_of(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports: at import time, inside functions, and only for the type checker."""
    return {
        module: imported(path.read_text(encoding="utf-8"), module) & modules.keys() - {module}
        for module, path in modules.items()
    }
