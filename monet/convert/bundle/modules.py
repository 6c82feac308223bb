"""Parses a module's source: its imports, and its top-level statements with the names that they bind and use."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from monet.convert.bundle.scopes import Use, bound_names, uses_of

PACKAGE = "monet"
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)


class BundleError(RuntimeError):
    """A module cannot be copied into the one file; the message names the module and the change it needs."""


class External(NamedTuple):
    """`import module as local`, or `from module import name as local`."""

    module: str
    name: str | None


class Statement(NamedTuple):
    """A top-level statement to copy, with the comments above it."""

    node: ast.stmt
    first_line: int
    last_line: int
    binds: frozenset[str]
    uses: tuple[Use, ...]

    @property
    def lines(self) -> range:
        """Its line numbers, from 1."""
        return range(self.first_line, self.last_line + 1)

    @property
    def acts(self) -> bool:
        """Whether it does more than bind names."""
        return not (self.binds and isinstance(self.node, _DEFINITIONS))


class Module:
    """A parsed module: its imports, definitions and uses."""

    def __init__(self, name: str, stand_ins: Mapping[str, str]) -> None:
        self.name = name
        self.source = _source(name)
        self.lines = self.source.splitlines()
        self.tree = ast.parse(self.source)
        self.summary = (ast.get_docstring(self.tree) or "").strip()
        self.internal: dict[str, tuple[str, str | None]] = {}  # local name -> module, and a name in it
        self.external: dict[str, External] = {}
        self.needed_first: list[str] = []
        self.dropped: list[tuple[ast.stmt, list[str]]] = []  # imports inside functions, and the modules they name
        self.deferred: list[ast.Import | ast.ImportFrom] = []  # the same for other packages, outside try blocks
        self._stand_ins = stand_ins
        copied = [node for node in self.tree.body if not self._reads_import(node)]
        for node in ast.walk(ast.Module(copied, [])):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and _is_internal(node):
                needed: list[str] = []
                self._read_internal(node, needed)
                self.dropped.append((node, needed))
        self.deferred += (node for node in _outside_try(copied) if not _is_internal(node))
        self.statements = list(self._statements(copied))
        self.defined = frozenset().union(*(statement.binds for statement in self.statements))

    def _reads_import(self, node: ast.stmt) -> bool:
        """Whether a top-level statement is not copied (imports, docstring, `__all__`); records imports."""
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not node.orelse:
            if not all(isinstance(child, (ast.Import, ast.ImportFrom)) for child in node.body):
                return False
            for child in node.body:
                self._read_internal(child, []) if _is_internal(child) else self._read_external(child)
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._read_internal(node, self.needed_first) if _is_internal(node) else self._read_external(node)
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return True
        return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"

    def _read_internal(self, node: Any, needed: list[str]) -> None:
        if isinstance(node, ast.Import) or node.level or _names_of_package(node):
            raise BundleError(f"{self.name}:{node.lineno}: write `from {PACKAGE}.module import name` here")
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            module, name = (inside, None) if _is_module(node.module, alias.name) else (node.module, alias.name)
            module = self._stand_ins.get(module, module)
            target, local = (module, name), alias.asname or alias.name
            if self.internal.setdefault(local, target) != target:
                raise BundleError(f"{self.name}:{node.lineno}: {local} is imported twice, with two meanings; rename it")
            needed.append(module)

    def _read_external(self, node: Any) -> None:
        for alias in node.names:
            outer, _, inner = alias.name.rpartition(".")
            if isinstance(node, ast.ImportFrom):
                found = External(node.module or "", alias.name)
            elif outer and not alias.asname:
                raise BundleError(f"{self.name}:{node.lineno}: write `import {alias.name} as ...` here")
            else:
                found = External(outer, inner) if outer else External(inner, None)
            if found.module != "__future__":
                self.external[alias.asname or alias.name] = found

    def _statements(self, nodes: Sequence[ast.stmt]) -> Iterator[Statement]:
        aliases = {local for local, (_, name) in self.internal.items() if name is None}
        ends = {node.lineno: node.end_lineno or node.lineno for node in self.tree.body}
        if len(ends) < len(self.tree.body):
            raise BundleError(f"{self.name}: two statements share a line; put each on a separate line")
        for node in nodes:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            before = max((end for line, end in ends.items() if line < node.lineno), default=0)
            uses = tuple(uses_of(node, aliases, set(self.internal), self.lines))
            yield Statement(node, min(before + 1, first), ends[node.lineno], frozenset(bound_names([node])), uses)


def _outside_try(nodes: Iterable[ast.AST]) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not isinstance(node, ast.Try):
            yield from _outside_try(ast.iter_child_nodes(node))


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    source = spec.loader.get_source(module) if spec and spec.loader else None  # type: ignore[attr-defined]
    if source is None:
        raise BundleError(f"{module} has no Python source to copy")
    return source


def _is_internal(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return bool(node.level) or (node.module or "").split(".")[0] == PACKAGE
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names)


def _is_module(package: str, name: str) -> bool:
    """Whether a package has a module of this name; only packages are imported to find out."""
    found = importlib.util.find_spec(package)
    if found is None or found.submodule_search_locations is None:
        return False
    return importlib.util.find_spec(f"{package}.{name}") is not None


def _names_of_package(node: ast.ImportFrom) -> bool:
    """Whether the statement imports from the package's own `__init__`, which is not copied."""
    return node.module == PACKAGE and not all(_is_module(PACKAGE, alias.name) for alias in node.names)


def packages_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The top-level packages that a statement imports."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return [name.split(".")[0] for name in names]
