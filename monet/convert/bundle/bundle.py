"""Writes the modules that some definitions need as one file, which runs without the package.

Each definition is copied unchanged, comments and docstrings included. Unneeded definitions are omitted. Imports within
the package are removed. Imports of other packages move to the top; an import inside a function stays there. If two
modules give a name to different things, one of the two is renamed, with every use of it. Source that cannot be copied
faithfully is refused.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from monet.convert.bundle.modules import PACKAGE, BundleError, External, Module, Statement, packages_of
from monet.convert.bundle.scopes import Use

_MODULE_NAMES = {"__name__", "__file__", "__doc__"}


class Symbol(NamedTuple):
    """A name at the top level of a module; `module` is "" if another package defines it."""

    module: str
    name: str


class Bundle:
    """The modules that the given definitions need, and the name of each top-level definition in the one file.

    Args:
        roots: (module, name) of the definitions that the file provides; they keep their names.
        stand_ins: module -> the module that replaces it.
        packages: top-level packages that the file may import in addition to Python's standard library.
        refused: prefixes of modules that the file must not contain.

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
        self.modules: dict[str, Module] = {}  # each module follows those that it imports
        for module, _ in roots:
            self._visit(module, ())
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
                "hold; move the needed definitions into a module below it, or name a stand-in"
            )
        module = Module(name, self._stand_ins)
        for needed in module.needed_first:
            self._visit(needed, (*importers, name))
        self.modules[name] = module

    def resolve(self, module: str, name: str) -> Symbol:
        """The definition that a module refers to by this name."""
        found = self.modules[module]
        if name in found.internal:
            target, inner = found.internal[name]
            if inner is None:
                raise BundleError(f"{module} uses the module {target} as a value ({name}); use names from it instead")
            if target not in self.modules:
                raise BundleError(f"{module} names {target}.{inner}, but no copied code imports {target}")
            return self.resolve(target, inner)
        if name in found.defined:
            return Symbol(module, name)
        if name in found.external or name in _MODULE_NAMES or hasattr(builtins, name):
            return Symbol("", name)
        raise BundleError(f"{module} uses {name}, which is neither defined nor imported there")

    def symbol_of(self, module: str, use: Use) -> Symbol:
        """The definition that a use refers to."""
        if use.attribute is None:
            return self.resolve(module, use.name)
        return self.resolve(self.modules[module].internal[use.name][0], use.attribute)

    def _reachable(self) -> dict[str, list[Statement]]:
        """The statements that the roots need; in each reached module, also the statements with side effects."""
        kept: dict[str, list[Statement]] = {}
        pending = [found for root in self.roots for found in self._definitions(root)]
        while pending:
            name, statement = pending.pop()
            module = self.modules[name]
            if name not in kept:
                kept[name] = []
                pending += [(name, other) for other in module.statements if other.acts]
            if any(statement is other for other in kept[name]):
                continue
            kept[name].append(statement)
            # An import inside a function comes after all others: it may need the statements before it.
            for needed in (n for node, names in module.dropped if node.lineno in statement.lines for n in names):
                self._visit(needed, (name,))
            for use in statement.uses:
                pending += self._definitions(self.symbol_of(name, use))
        ordered = {name: kept[name] for name in self.modules if name in kept}
        return {name: sorted(found, key=lambda statement: statement.first_line) for name, found in ordered.items()}

    def _definitions(self, symbol: Symbol) -> list[tuple[str, Statement]]:
        statements = self.modules[symbol.module].statements if symbol.module else []
        return [(symbol.module, statement) for statement in statements if symbol.name in statement.binds]

    def _uses(self) -> Iterator[tuple[Symbol, Use]]:
        for name, statements in self.kept.items():
            for statement in statements:
                for use in statement.uses:
                    yield self.symbol_of(name, use), use

    def _hidden(self) -> Iterator[Symbol]:
        """Definitions whose new name would clash with a function's local variable at a place where they are used."""
        for symbol, use in self._uses():
            name = self.names.get(symbol, symbol.name)
            if name != use.text and name in use.hidden:
                yield symbol

    def _name(self, first: Iterable[Symbol], renamed: Collection[Symbol] = ()) -> dict[Symbol, str]:
        """A name for each definition: its own, unless that is taken; then its module's name is put in front."""
        taken = {name: External("builtins", name) for name in dir(builtins)} | self._externals()
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
                    raise BundleError(f"{symbol.module}.{symbol.name}: this name and {name} are both taken; rename it")
            taken[name] = External(symbol.module, symbol.name)
            names[symbol] = name
        return names

    def _externals(self) -> dict[str, External]:
        """The names from other packages that the kept statements use, by local name."""
        used: dict[str, External] = {}
        for name, statements in self.kept.items():
            for local, found in self._external_uses(name, statements):
                if used.setdefault(local, found) != found:
                    raise BundleError(f"{local} is {found} in {name}, but {used[local]} elsewhere; rename one")
                top = found.module.split(".")[0]
                if not self._is_present(top):
                    raise BundleError(
                        f"{name} imports {top}, which may be missing where the modelling file runs; remove it"
                    )
        return used

    def _external_uses(self, name: str, statements: Sequence[Statement]) -> Iterator[tuple[str, External]]:
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
        """The import statements of the file, the standard library first."""
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
        """The kept statements of each module, under `heading(module, its docstring)`."""
        for name, statements in self.kept.items():
            text = "\n".join(self._text(self.modules[name], statement) for statement in statements)
            yield f"{heading(name, self.modules[name].summary)}\n\n\n" + re.sub(r"\n{4,}", "\n\n\n", text.strip("\n"))

    def _text(self, module: Module, statement: Statement) -> str:
        lines = {n: module.lines[n - 1] for n in statement.lines}
        edits = [use for use in statement.uses if self._renames(module.name, use) is not None]
        for use in sorted(edits, key=lambda use: (use.line, use.column), reverse=True):
            line = lines[use.line].encode()
            if line[use.column : use.end].decode() != use.text:
                raise BundleError(f"{module.name}:{use.line}: cannot rename {use.text} on this line; use a plain name")
            new = (self._renames(module.name, use) or "").encode()
            lines[use.line] = (line[: use.column] + new + line[use.end :]).decode()
        for node in (node for node, _ in module.dropped if node.lineno in lines):
            last = self._last_line(module, node)
            for n in range(node.lineno, last + (2 if lines.get(last + 1) == "" else 1)):
                del lines[n]
        for node in (node for node in module.deferred if node.lineno in lines):
            if not all(map(self._is_present, packages_of(node))):
                # transformers refuses a file with such an import, even if it never runs, unless it is in a try block
                indent, last = " " * node.col_offset, self._last_line(module, node)
                for n in range(node.lineno, last + 1):
                    lines[n] = f"    {lines[n]}"
                lines[node.lineno] = f"{indent}try:\n{lines[node.lineno]}"
                lines[last] += f"\n{indent}except ImportError:\n{indent}    raise"
        return "\n".join(lines.values())

    def _last_line(self, module: Module, node: ast.stmt) -> int:
        if module.lines[node.lineno - 1][: node.col_offset].strip():
            raise BundleError(f"{module.name}:{node.lineno}: put the import on a separate line")
        return node.end_lineno or node.lineno

    def _is_present(self, package: str) -> bool:
        return package in self._packages or package in sys.stdlib_module_names

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
