"""Joins the page's ES modules into one script: a browser does not load modules from disk.

Each module becomes a function that returns what the module exports. The page's modules use these forms only: imports of
names or of a whole module at the start of a line, and `export` before a function, a class or a constant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from monet.errors import ConfigError

_IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "\./([\w.]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)


def bundled(modules: Mapping[str, str], start: str) -> str:
    """One script that runs like the modules.

    Args:
        modules: source by name, without the ending.
        start: the module that starts the page.

    Raises:
        ConfigError: modules import each other, or a module has another form of import or export.
    """
    done: list[str] = []
    scripts: list[str] = []

    def add(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise ConfigError(f"the page's modules import each other: {' -> '.join([*waiting, name])}")
        if name in done:
            return
        source = modules[name]
        for _, _, other in _IMPORT.findall(source):
            add(other, (*waiting, name))
        done.append(name)
        scripts.append(_wrapped(name, source))

    add(start, ())
    return '"use strict";\n' + "\n".join(scripts)


def _wrapped(name: str, source: str) -> str:
    def imports(match: re.Match[str]) -> str:
        whole, names, other = match.groups()
        return f"const {whole or '{' + names.replace(' as ', ': ') + '}'} = module_{other};\n"

    exported = _EXPORT.findall(source)
    body = _EXPORT.sub("", _IMPORT.sub(imports, source))
    if found := re.search(r"^(import|export)\b.*", body, re.MULTILINE):
        raise ConfigError(f"{name}.js: {found[0]!r} is a form that cannot be joined")
    return f"const module_{name} = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();"
