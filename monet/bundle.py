"""Several modules of this package as the source of one file, which runs without the package.

Each definition is copied as it stands, comments and docstrings included. Definitions that nothing needs are left out.
Imports inside the package go away, imports of other packages move to the top. A name that two modules give to
different things is renamed in one of them, and every use with it. What cannot be copied faithfully is refused.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import keyword
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from monet.bundle_scopes import Use, bound_names, uses_of

PACKAGE = "monet"
_MODULE_NAMES = {"__name__", "__file__", "__doc__"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.AugAssign)


class BundleError(RuntimeError):
    """A module holds something that the one file cannot hold; says which module, and what to change."""


class Symbol(NamedTuple):
    """A name at the top of a module; `module` is "" for what another package defines."""

    module: str
    name: str


class _External(NamedTuple):
    """`import module as local`, or `from module import name as local`."""

    module: str
    name: str | None


class _Statement(NamedTuple):
    """A top-level statement that is copied, with the comments above it; lines count from 1."""

    node: ast.stmt
    first_line: int
    last_line: int
    binds: frozenset[str]
    uses: tuple[Use, ...]

    @property
    def acts(self) -> bool:
        """Whether it does something besides giving a value to a name."""
        return not (self.binds and isinstance(self.node, _DEFINITIONS))


class _Module:
    """A parsed module: what it imports, defines and uses."""

    def __init__(self, name: str, stand_ins: Mapping[str, str]) -> None:
        self.name = name
        self.source = _source(name)
        self.lines = self.source.splitlines()
        self.tree = ast.parse(self.source)
        self.summary = (ast.get_docstring(self.tree) or "").strip()
        self.internal: dict[str, tuple[str, str | None]] = {}  # local name -> module, and a name in it
        self.external: dict[str, _External] = {}
        self.needed_first: list[str] = []
        self.needed: list[str] = []
        self.dropped: list[ast.stmt] = []  # imports inside functions
        self._stand_ins = stand_ins
        copied = [node for node in self.tree.body if not self._reads_import(node)]
        for node in ast.walk(ast.Module(copied, [])):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and _is_internal(node):
                self._read_internal(node, self.needed)
                self.dropped.append(node)
        self.statements = list(self._statements(copied))
        self.defined = frozenset().union(*(statement.binds for statement in self.statements))

    def _reads_import(self, node: ast.stmt) -> bool:
        """Whether a top-level statement is not copied: imports, the docstring, `__all__`; keeps note of imports."""
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            if node.orelse or not all(isinstance(child, (ast.Import, ast.ImportFrom)) for child in node.body):
                raise BundleError(f"{self.name}:{node.lineno}: TYPE_CHECKING at the top may only guard imports")
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
            module, name = (inside, None) if _is_module(inside) else (node.module, alias.name)
            module = self._stand_ins.get(module, module)
            target, local = (module, name), alias.asname or alias.name
            if self.internal.setdefault(local, target) != target:
                raise BundleError(f"{self.name}:{node.lineno}: {local} is imported twice, with two meanings")
            needed.append(module)

    def _read_external(self, node: Any) -> None:
        for alias in node.names:
            outer, _, inner = alias.name.rpartition(".")
            if isinstance(node, ast.ImportFrom):
                found = _External(node.module or "", alias.name)
            elif outer and not alias.asname:
                raise BundleError(f"{self.name}:{node.lineno}: write `import {alias.name} as ...` here")
            else:
                found = _External(outer, inner) if outer else _External(inner, None)
            if found.module != "__future__":
                self.external[alias.asname or alias.name] = found

    def _statements(self, nodes: Sequence[ast.stmt]) -> Iterator[_Statement]:
        aliases = {local for local, (_, name) in self.internal.items() if name is None}
        ends = {node.lineno: node.end_lineno or node.lineno for node in self.tree.body}
        for node in nodes:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            before = max((end for line, end in ends.items() if line < node.lineno), default=0)
            uses = tuple(uses_of(node, aliases, set(self.internal), self.lines))
            yield _Statement(node, min(before + 1, first), ends[node.lineno], frozenset(bound_names([node])), uses)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    source = spec.loader.get_source(module) if spec and spec.loader else None  # type: ignore[attr-defined]
    if source is None:
        raise BundleError(f"{module} has no source to copy")
    return source


def _is_internal(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return bool(node.level) or (node.module or "").split(".")[0] == PACKAGE
    return isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent is a module, not a package
        return False


def _names_of_package(node: ast.ImportFrom) -> bool:
    """Whether it imports from the package's own `__init__`, which is no part of the copy."""
    return node.module == PACKAGE and not all(_is_module(f"{PACKAGE}.{alias.name}") for alias in node.names)


class Bundle:
    """The modules that some modules need, and what each top-level name is called in the one file.

    Args:
        roots: (module, name) of the definitions that the file is for; they keep their names.
        stand_ins: module -> the module that takes its place.
        packages: top-level packages the file may import beside Python's own library.
        refused: prefixes of modules that the file must not hold.

    Raises:
        BundleError: a module cannot be copied faithfully.
    """

    def __init__(
        self,
        roots: Sequence[tuple[str, str]],
        stand_ins: Mapping[str, str],
        packages: Collection[str],
        refused: Sequence[str],
    ) -> None:
        self._stand_ins, self._packages, self._refused = stand_ins, packages, tuple(refused)
        self.modules: dict[str, _Module] = {}  # each after those it imports
        pending = list(dict.fromkeys(module for module, _ in roots))
        while pending:  # what functions import comes last: it may need what precedes
            for module in pending:
                self._visit(module, ())
            pending = [name for module in self.modules.values() for name in module.needed if name not in self.modules]
        self.roots = [self.resolve(*root) for root in roots]
        self.kept = self._reachable()
        self.names = self._name({*self.roots})
        hidden = set(self._hidden())
        if hidden:
            self.names = self._name({*self.roots}, hidden)
            for symbol in self._hidden():
                raise BundleError(f"{symbol.module}.{symbol.name} is hidden by a variable where it is used; rename it")

    def _visit(self, name: str, importers: tuple[str, ...]) -> None:
        if name in self.modules:
            return
        if name in importers:
            raise BundleError("import cycle: " + " -> ".join([*importers, name]))
        if any(name == prefix or name.startswith(prefix + ".") for prefix in self._refused):
            raise BundleError(
                f"{importers[-1] if importers else 'a model class'} imports {name}, which the modelling file must not "
                "hold; move what is needed into a module below it, or name a stand-in"
            )
        module = _Module(name, self._stand_ins)
        for needed in module.needed_first:
            self._visit(needed, (*importers, name))
        self.modules[name] = module

    def resolve(self, module: str, name: str) -> Symbol:
        """Where the thing is defined that a module calls by this name."""
        found = self.modules[module]
        if name in found.internal:
            target, inner = found.internal[name]
            if inner is None:
                raise BundleError(f"{module} uses the module {target} as a value ({name}); use its names")
            if target not in self.modules:
                raise BundleError(f"{module} names {target}.{inner}, but nothing that runs imports {target}")
            return self.resolve(target, inner)
        if name in found.defined:
            return Symbol(module, name)
        if name in found.external or name in _MODULE_NAMES or hasattr(builtins, name):
            return Symbol("", name)
        raise BundleError(f"{module} uses {name}, which is neither defined nor imported there")

    def symbol_of(self, module: str, use: Use) -> Symbol:
        """What a use means."""
        if use.attribute is None:
            return self.resolve(module, use.name)
        return self.resolve(self.modules[module].internal[use.name][0], use.attribute)

    def _reachable(self) -> dict[str, list[_Statement]]:
        """The statements that the roots need: in each module that is reached, also those that act."""
        definitions: dict[Symbol, list[tuple[str, _Statement]]] = {}
        for module in self.modules.values():
            for statement in module.statements:
                for name in statement.binds:
                    definitions.setdefault(Symbol(module.name, name), []).append((module.name, statement))
        kept: dict[str, list[_Statement]] = {name: [] for name in self.modules}
        pending = [statement for root in self.roots for statement in definitions[root]]
        reached: set[str] = set()
        while pending:
            name, statement = pending.pop()
            if any(statement is other for other in kept[name]):
                continue
            kept[name].append(statement)
            if name not in reached:
                reached.add(name)
                pending += [(name, other) for other in self.modules[name].statements if other.acts]
            for use in statement.uses:
                pending += definitions.get(self.symbol_of(name, use), [])
        return {name: sorted(found, key=lambda s: s.first_line) for name, found in kept.items() if found}

    def _uses(self) -> Iterator[tuple[Symbol, Use]]:
        for name, statements in self.kept.items():
            for statement in statements:
                for use in statement.uses:
                    yield self.symbol_of(name, use), use

    def _hidden(self) -> Iterator[Symbol]:
        """Definitions whose new name would mean a function's own variable at a place where they are used."""
        for symbol, use in self._uses():
            name = self.names.get(symbol, symbol.name)
            if name != use.text and name in use.hidden:
                yield symbol

    def _name(self, first: Iterable[Symbol], renamed: Collection[Symbol] = ()) -> dict[Symbol, str]:
        """A name for each definition: its own, unless it is taken; then with its module's name before it."""
        taken = {name: _External("builtins", name) for name in dir(builtins)} | self._externals()
        identifiers = set(re.findall(r"\w+", "\n".join(module.source for module in self.modules.values())))
        symbols = [
            Symbol(name, bound)
            for name, statements in reversed(self.kept.items())
            for statement in statements
            for bound in sorted(statement.binds)
        ]
        names: dict[Symbol, str] = {}
        for symbol in dict.fromkeys([*sorted(first), *symbols]):
            name = symbol.name
            if name in taken or symbol in renamed:
                place = symbol.module.removeprefix(f"{PACKAGE}.").removeprefix("kernels.").replace(".", "_")
                private = "_" if name.startswith("_") else ""
                name = f"{private}{place}_{name.lstrip('_')}"
                if name in taken or name in identifiers or symbol in self.roots or keyword.iskeyword(name):
                    raise BundleError(f"{symbol.module}.{symbol.name}: the name is taken, and so is {name}; rename it")
            taken[name] = _External(symbol.module, symbol.name)
            names[symbol] = name
        return names

    def _externals(self) -> dict[str, _External]:
        """What the kept statements use of other packages, by the name they use it under."""
        used: dict[str, _External] = {}
        for name, statements in self.kept.items():
            for local, found in self._external_uses(name, statements):
                if used.setdefault(local, found) != found:
                    raise BundleError(f"{local} is {found} in {name}, elsewhere {used[local]}; import it by one name")
                top = found.module.split(".")[0]
                if top not in self._packages and top not in sys.stdlib_module_names:
                    raise BundleError(f"{name} imports {top}, which may be missing where the modelling file runs")
        return used

    def _external_uses(self, name: str, statements: Sequence[_Statement]) -> Iterator[tuple[str, _External]]:
        for use in (use for statement in statements for use in statement.uses):
            module, local = name, use.attribute or use.name
            if use.attribute is not None:
                module = self.modules[name].internal[use.name][0]
            while local in self.modules[module].internal:
                module, inner = self.modules[module].internal[local]
                local = inner or local
            if local in self.modules[module].external:
                yield local, self.modules[module].external[local]

    def imports(self) -> str:
        """The import statements of the file, Python's own library first."""
        plain: list[tuple[str, str]] = []
        members: dict[str, list[tuple[str, str]]] = {}
        for local, (module, name) in sorted(self._externals().items()):
            if name is None:
                plain.append((module, f"import {module}" + (f" as {local}" if local != module else "")))
            else:
                members.setdefault(module, []).append((name, local))
        groups = []
        for is_own in (True, False):
            lines = [line for module, line in plain if _is_own(module) == is_own]
            lines += [_from(module, members[module]) for module in sorted(members) if _is_own(module) == is_own]
            groups.append("\n".join(lines))
        return "\n\n".join(group for group in groups if group)

    def sections(self, heading: Callable[[str, str], str]) -> Iterator[str]:
        """The kept statements of each module, below `heading(module, its docstring)`."""
        for name, statements in self.kept.items():
            text = "\n".join(self._text(self.modules[name], statement) for statement in statements)
            yield f"{heading(name, self.modules[name].summary)}\n\n\n" + re.sub(r"\n{4,}", "\n\n\n", text.strip("\n"))

    def _text(self, module: _Module, statement: _Statement) -> str:
        lines = {n: module.lines[n - 1] for n in range(statement.first_line, statement.last_line + 1)}
        edits = [use for use in statement.uses if self._renames(module.name, use) is not None]
        for use in sorted(edits, key=lambda use: (use.line, use.column), reverse=True):
            line = lines[use.line].encode()
            if line[use.column : use.end].decode() != use.text:
                raise BundleError(f"{module.name}:{use.line}: cannot rename {use.text} on this line")
            new = (self._renames(module.name, use) or "").encode()
            lines[use.line] = (line[: use.column] + new + line[use.end :]).decode()
        for node in module.dropped:
            if node.lineno in lines:
                if module.lines[node.lineno - 1][: node.col_offset].strip():
                    raise BundleError(f"{module.name}:{node.lineno}: put the import on a line of its own")
                last = node.end_lineno or node.lineno
                for n in range(node.lineno, last + (2 if lines.get(last + 1) == "" else 1)):
                    del lines[n]
        return "\n".join(lines.values())

    def _renames(self, module: str, use: Use) -> str | None:
        symbol = self.symbol_of(module, use)
        name = self.names.get(symbol, symbol.name)
        return None if name == use.text else name


def _is_own(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names


def _from(module: str, names: list[tuple[str, str]]) -> str:
    own = sorted((name for name, local in names if name == local), key=lambda n: (not n.isupper(), n[0].islower(), n))
    line = f"from {module} import {', '.join(own)}"
    if len(line) > 120:
        line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in own) + ")"
    renamed = [f"from {module} import {name} as {local}" for name, local in sorted(names) if name != local]
    return "\n".join([*([line] if own else []), *renamed])
