"""Finds the names in a piece of source that refer to top-level definitions of its module."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Use(NamedTuple):
    """One use of a module's top-level name in the source.

    name: the name in the module; attribute: the attribute taken from it if the name is a module, else None.
    line: from 1; column, end: in bytes of the line's UTF-8.
    text: the source text of the use. hidden: names that enclosing functions bind to local variables.
    """

    name: str
    attribute: str | None
    line: int
    column: int
    end: int
    text: str
    hidden: frozenset[str]


def uses_of(node: ast.stmt, modules: Collection[str], imported: Collection[str], lines: Sequence[str]) -> list[Use]:
    """The uses in a top-level statement, including the names that it defines.

    Args:
        node: the statement.
        modules: names that refer to modules.
        imported: names bound by imports that are omitted from the copy, at any place in the statement.
        lines: lines of the whole source.
    """
    visitor = _Visitor(modules, imported, lines)
    visitor.visit(node)
    return visitor.found


def bound_names(nodes: Iterable[ast.AST], imported: Collection[str] = ()) -> set[str]:
    """Names that statements bind in their own scope."""
    bound: set[str] = set()
    released: set[str] = set()
    for node in _same_scope(nodes):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            bound.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update({(alias.asname or alias.name).split(".")[0] for alias in node.names} - set(imported))
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
        elif isinstance(node, ast.Global):
            released.update(node.names)
    return bound - released


def _same_scope(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        yield node
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, _COMPREHENSIONS):
            yield from (inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr))
            continue
        yield from _same_scope(ast.iter_child_nodes(node))


class _Visitor(ast.NodeVisitor):
    def __init__(self, modules: Collection[str], imported: Collection[str], lines: Sequence[str]) -> None:
        self.found: list[Use] = []
        self._modules, self._imported, self._lines = modules, imported, lines
        self._scopes: list[tuple[bool, set[str]]] = []  # whether the scope is a class, and its names

    def _hidden(self) -> frozenset[str]:
        """Names that mean something else here; a class's names do so in its own body, but not in its functions."""
        seen = [bound for is_class, bound in self._scopes[:-1] if not is_class]
        return frozenset().union(*seen, *(bound for _, bound in self._scopes[-1:]))

    def _is_of_module(self, name: str) -> bool:
        return name not in self._hidden()

    def _add(self, name: str, attribute: str | None, line: int, column: int, text: str) -> None:
        self.found.append(Use(name, attribute, line, column, column + len(text.encode()), text, self._hidden()))

    def visit_Name(self, node: ast.Name) -> None:
        if self._is_of_module(node.id):
            self._add(node.id, None, node.lineno, node.col_offset, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        value = node.value
        if isinstance(value, ast.Name) and value.id in self._modules and self._is_of_module(value.id):
            self._add(value.id, node.attr, node.lineno, node.col_offset, f"{value.id}.{node.attr}")
        else:
            self.visit(value)

    def visit_Global(self, node: ast.Global) -> None:
        for name in node.names:  # the recorded text differs from the source, so renaming is refused
            self._add(name, None, node.lineno, node.col_offset, name)

    def _within(self, nodes: Iterable[ast.AST], bound: set[str], is_class: bool = False) -> None:
        self._scopes.append((is_class, bound))
        for node in nodes:
            self.visit(node)
        self._scopes.pop()

    def _visit_definition(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        if not self._scopes:
            line = self._lines[node.lineno - 1].encode()
            column = line.index(b" " + node.name.encode(), node.col_offset) + 1
            self._add(node.name, None, node.lineno, column, node.name)
        for decorator in node.decorator_list:
            self.visit(decorator)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_definition(node)
        self._visit_arguments(node.args)
        if node.returns is not None:
            self.visit(node.returns)
        self._within(node.body, _arguments(node.args) | bound_names(node.body, self._imported))

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)  # type: ignore[arg-type]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_definition(node)
        for outer in (*node.bases, *node.keywords):
            self.visit(outer)
        self._within(node.body, bound_names(node.body, self._imported), is_class=True)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_arguments(node.args)
        self._within([node.body], _arguments(node.args))

    def _visit_arguments(self, arguments: ast.arguments) -> None:
        for argument in _all_arguments(arguments):
            if argument.annotation is not None:
                self.visit(argument.annotation)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)

    def _visit_comprehension(self, node: Any) -> None:
        bound = bound_names([generator.target for generator in node.generators])
        self._within(ast.iter_child_nodes(node), bound)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension


def _all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [*found, *(argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None)]


def _arguments(arguments: ast.arguments) -> set[str]:
    return {argument.arg for argument in _all_arguments(arguments)}
