"""Facts about programming: where functions belong, file endings, numbers of protocols."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from corpus.assemble import shuffled
from corpus.facts_form import Fact, Relation
from corpus.recipe import Source

LIBRARY = Source("libpython3.11-stdlib", "PSF-2.0", 1.0, ("usr/lib/python3.11",))
CPP = Source("cppreference-doc-en-html", "CC-BY-SA-3.0", 1.0, ("usr/share/cppreference/doc/html/en/cpp",))
LEXERS = Source(
    "pygments",
    "BSD-2-Clause",
    1.0,
    ("pygments/lexers",),
    client="pip",
    version="2.21.0",
    sha256="2363c69b61c4a97c838da3b130dcd6468f4848992b21a82f2a63ec34377137d9",
)
LINGUIST = Source("linguist-languages", "MIT", 1.0, ("package/data",), client="npm", version="9.5.0")
NETWORK = Source("netbase", "GPL-2.0-only", 1.0, ("etc/services",))


def _public(tree: ast.Module) -> list[str]:
    """The names in a module's __all__ that it defines as functions or classes."""
    listed: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed |= {
                one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [name for name in defined if name in listed]


def python_modules(library: Path) -> Iterator[Fact]:
    """The module of each public name of Python's library that only one module has, the most used first."""
    where: dict[str, set[str]] = defaultdict(set)
    used: Counter[str] = Counter()
    for file in sorted(library.glob("**/*.py")):
        module = ".".join(file.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        if re.search(r"(^|\.)(_|test|idlelib|lib2to3|pydoc_data|encodings)", module):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name in _public(tree):
            where[name].add(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                used.update(alias.name for alias in node.names)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used[f"{node.value.id}.{node.attr}"] += 1
    single = {name: next(iter(modules)) for name, modules in where.items() if len(modules) == 1}
    for name in sorted(single, key=lambda name: (-used[name] - used[f"{single[name]}.{name}"], name)):
        if "." not in single[name] and len(name) > 3:
            yield Fact(name, single[name])


def cpp_headers(folder: Path) -> Iterator[Fact]:
    """The header of each name of C++'s library that only one header has, the names with the longest pages first."""
    found: dict[str, set[str]] = defaultdict(set)
    length: Counter[str] = Counter()
    for file in folder.glob("*/**/*.html"):
        text = file.read_text(encoding="utf-8")
        title = re.search(r"<title>([\w:, ]+?) - cppreference", text)
        headers = set(re.findall(r"Defined in header <code>(?:<a[^>]*>)?&lt;(\w+)&gt;", text))
        if title and headers and "experimental" not in file.parts:
            for name in title[1].split(", "):
                if re.fullmatch(r"std::\w{3,}", name):
                    found[name] |= headers
                    length[name] = max(length[name], len(text))
    for name in sorted(found, key=lambda name: (-length[name], name)):
        if len(found[name]) == 1:
            (header,) = found[name]
            yield Fact(name, f"<{header}>")


def lua_libraries(lexers: Path) -> Iterator[Fact]:
    """The library of each function of Lua that only one library has; shuffled."""
    (value,) = (
        node.value
        for node in ast.parse((lexers / "_lua_builtins.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES"
    )
    modules = {module: names for module, names in ast.literal_eval(value).items() if module != "basic"}
    where: dict[str, set[str]] = defaultdict(set)
    for names in modules.values():
        for full in names:
            library, dot, name = full.partition(".")
            if dot:
                where[name].add(library)
    for name in shuffled(where):
        if len(where[name]) == 1 and name.isalpha():
            (library,) = where[name]
            yield Fact(name, library)


def file_endings(folder: Path) -> Iterator[Fact]:
    """The usual ending of the files of each programming language, the languages with the most names first."""
    found = []
    for file in sorted(folder.glob("*.js")):
        text = file.read_text(encoding="utf-8")
        name = re.search(r"\bname: '([^'\\]+)'", text)
        ending = re.search(r"\bextensions: \[\s*'(\.\w+)'", text)
        if name and ending and "type: 'programming'" in text:
            found.append((-len(re.findall(r"'[^']*'", text)), name[1], ending[1]))
    shared = Counter(ending for _, _, ending in found)
    for _, name, ending in sorted(found):
        if shared[ending] == 1:
            yield Fact(name, ending)


def ports(services: Path) -> Iterator[Fact]:
    """The port of each service of the Internet."""
    found = re.findall(r"^([a-z][\w-]+)\s+(\d+)/(?:tcp|udp)", services.read_text(encoding="utf-8"), re.MULTILINE)
    return (Fact(name, port, int(port)) for name, port in dict.fromkeys(found))


def status_codes(library: Path) -> Iterator[Fact]:
    """The meaning of each status code of HTTP."""
    text = (library / "http" / "__init__.py").read_text(encoding="utf-8")
    for number, meaning in re.findall(r"^    \w+ = \(?(\d{3}), '([^']+)'", text, re.MULTILINE):
        yield Fact(number, meaning, number[0])


PROGRAMMING = (
    Relation(
        "programming",
        "python",
        (
            "In Python, {subject} is in the module",
            "To use {subject} in a Python program, first import it from",
            "Question: Which module of Python's standard library has {subject}? Answer:",
        ),
        (LIBRARY,),
        python_modules,
    ),
    Relation(
        "programming",
        "cpp",
        (
            "In C++, {subject} is declared in the header",
            "To use {subject} in a C++ program, write #include",
            "Question: Which header of C++ declares {subject}? Answer:",
        ),
        (CPP,),
        cpp_headers,
    ),
    Relation(
        "programming",
        "lua",
        (
            "In Lua, the function {subject} is in the library",
            "The table that holds the Lua function {subject} is named",
            "Question: Which library of Lua has the function {subject}? Answer:",
        ),
        (LEXERS,),
        lua_libraries,
    ),
    Relation(
        "programming",
        "file_ending",
        (
            "Source files in the programming language {subject} end in",
            "The usual file extension of {subject} is",
            "Question: What is the file extension of programs in {subject}? Answer:",
        ),
        (LINGUIST,),
        file_endings,
    ),
    Relation(
        "programming",
        "port",
        (
            "The service {subject} uses the port",
            "On the Internet, the port number of {subject} is",
            "Question: Which port does {subject} use? Answer:",
        ),
        (NETWORK,),
        ports,
    ),
    Relation(
        "programming",
        "http_status",
        (
            "The HTTP status code {subject} means",
            "When a web server answers with {subject}, it says",
            "Question: What does the HTTP status code {subject} mean? Answer:",
        ),
        (LIBRARY,),
        status_codes,
    ),
)
