"""Compiles and runs a program of each language as MultiPL-E does, and finds the runtimes of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from monet.eval.sandbox.limits import Limits, Outcome
from monet.eval.sandbox.sandbox import COMPILE_ERROR, Sandbox
from monet.eval.sandbox.views import Command, find_command, python_interpreters, version_of
from monet.files import sha256_file

_LUAS = ("lua", "lua5.4", "lua5.3", "lua5.2", "lua5.1", "luajit")
_PHPS = ("php", *(f"php8.{minor}" for minor in range(5, -1, -1)))
JAVATUPLES = ("/usr/share/java/javatuples.jar",)
# MultiPL-E's Java prompts import javatuples, and its Lua tests need luaunit; without them no program can pass.
_PACKAGES = {
    "cpp": "g++",
    "java": "default-jdk libjavatuples-java",
    "javascript": "nodejs",
    "lua": "lua5.4 lua-unit",
    "php": "php-cli",
}


@dataclass(frozen=True)
class Runtime:
    """The runtime of one language on this machine.

    Args:
        language: a key of `monet.eval.suites.code.problems.CODES`.
        version: version that the runtime prints, with its libraries.
        file_name: name of a program's file.
        script: script for sh, with `$PROGRAM` and `$BOX` as in `Sandbox.run`.
        view: paths that the sandbox must show.
    """

    language: str
    version: str
    file_name: str
    script: str
    view: tuple[Path, ...] = field(compare=False)

    def run(self, program: str, sandbox: Sandbox) -> Outcome:
        """Run one program in the sandbox; it passes if it exits with code 0."""
        return sandbox.run({self.file_name: program}, self.script, self.view)


class _Missing(Exception):
    """A part of a runtime is missing; the text names it."""


def _need(what: str, *names: str) -> Command:
    found = find_command(*names)
    if found is None:
        raise _Missing(f"no {what} on the search path")
    return found


def _version(*words: str | Path) -> str:
    found = version_of([str(word) for word in words])
    if found is None:
        raise _Missing(f"{words[0]} does not run")
    return found


def _library(file: Path) -> str:
    """Name and hash of a library, because outcomes depend on it."""
    return f"{file.name} {sha256_file(file)[:8]}"


def _python(limits: Limits, libraries: Sequence[Path]) -> list[Runtime]:
    found = []
    for python in python_interpreters():
        version = version_of([str(python.path), "--version"])
        if version is not None:
            script = f"{python.command} -B -s $PROGRAM/program.py"
            found.append(Runtime("python", version, "program.py", script, python.view))
    return found


def _cpp(limits: Limits, libraries: Sequence[Path]) -> list[Runtime]:
    compiler = _need("g++", "g++")
    script = f"{compiler.command} -std=c++17 $PROGRAM/program.cpp -o $BOX/program || exit {COMPILE_ERROR}\n$BOX/program"
    return [Runtime("cpp", _version(compiler.path, "--version"), "program.cpp", script, compiler.view)]


def _java(limits: Limits, libraries: Sequence[Path]) -> list[Runtime]:
    compiler, machine = _need("javac", "javac"), _need("java", "java")
    jars = [jar for folder in libraries for jar in sorted(folder.glob("javatuples*.jar"))]
    jars += [Path(jar) for jar in JAVATUPLES if Path(jar).is_file()]
    if not jars:
        raise _Missing("no javatuples.jar, which MultiPL-E's Java programs import")
    jar = jars[0].resolve()
    heap = f"Xmx{limits.memory_mb // 2}m"
    compiling = f"-J-{heap} -J-XX:+UseSerialGC -J-XX:TieredStopAtLevel=1 -J-XX:-UsePerfData -encoding UTF8"
    script = (
        f"{compiler.command} {compiling} -cp {shlex.quote(str(jar))} -d $BOX $PROGRAM/Problem.java"
        f" || exit {COMPILE_ERROR}\n"
        f"{machine.command} -{heap} -XX:+UseSerialGC -XX:-UsePerfData -ea -cp $BOX:{shlex.quote(str(jar))} Problem"
    )
    version = f"{_version(machine.path, '-version')}, {_library(jar)}"
    return [Runtime("java", version, "Problem.java", script, (*compiler.view, *machine.view, jar))]


def _javascript(limits: Limits, libraries: Sequence[Path]) -> list[Runtime]:
    node = _need("node", "node", "nodejs")
    script = f"{node.command} $PROGRAM/program.js"
    return [Runtime("javascript", f"node {_version(node.path, '--version')}", "program.js", script, node.view)]


def _lua(limits: Limits, libraries: Sequence[Path]) -> list[Runtime]:
    lua = _need("lua", *_LUAS)
    version = _version(lua.path, "-v")
    ours = [str(folder / "luaunit.lua") for folder in libraries if (folder / "luaunit.lua").is_file()]
    file = ours[0] if ours else version_of([str(lua.path), "-e", _WHERE_LUAUNIT_IS])
    if file is None or not Path(file).is_file():
        raise _Missing("no luaunit.lua, which MultiPL-E's Lua tests require")
    path = Path(file).resolve()
    search = shlex.quote(f"{path.parent}/?.lua;;")
    script = f"LUA_PATH={search} {lua.command} $PROGRAM/program.lua"
    return [Runtime("lua", f"{version}, {_library(path)}", "program.lua", script, (*lua.view, path))]


_WHERE_LUAUNIT_IS = "print(debug.getinfo(require('luaunit').assertEquals, 'S').source:sub(2))"


def _php(limits: Limits, libraries: Sequence[Path]) -> list[Runtime]:
    php = _need("php", *_PHPS)
    script = f"{php.command} $PROGRAM/program.php"
    return [Runtime("php", _version(php.path, "--version"), "program.php", script, php.view)]


_FINDERS: dict[str, Callable[[Limits, Sequence[Path]], list[Runtime]]] = {
    "python": _python,
    "cpp": _cpp,
    "java": _java,
    "javascript": _javascript,
    "lua": _lua,
    "php": _php,
}
# One program per language. It passes if EXPECTED is 1 and fails if it is 2.
_CHECKS = {
    "python": "assert [1] == [EXPECTED]",
    "cpp": "#include<assert.h>\n#include<bits/stdc++.h>\nint main() { assert(std::vector<long>({1})[0] == EXPECTED); }",
    "java": "import org.javatuples.*;\nclass Problem {\n    public static void main(String[] args) {\n"
    "    assert(Pair.with(1, 1).equals(Pair.with(1, EXPECTED)));\n    }\n}",
    "javascript": "const assert = require('node:assert');\nassert.deepEqual([1],[EXPECTED]);",
    "lua": "lu = require('luaunit')\nfunction test_check() lu.assertEquals({1}, {EXPECTED}) end\n"
    "os.exit(lu.LuaUnit.run())",
    "php": '<?php\nif (array(1) !== array(EXPECTED)) { throw new Exception("Test failed!"); }',
}


def find_runtimes(
    languages: Sequence[str], sandbox: Sandbox, libraries: Sequence[Path] = ()
) -> tuple[dict[str, Runtime], dict[str, str]]:
    """The runtimes of this machine, each tested in the sandbox with a program that passes and one that fails.

    Args:
        languages: keys of `monet.eval.suites.code.problems.CODES`.
        sandbox: sandbox that will run the programs.
        libraries: folders with luaunit.lua or javatuples.jar, searched before the system's.

    Returns:
        Runtimes by language, and the reason for each language without one.
    """
    found: dict[str, Runtime] = {}
    missing: dict[str, str] = {}
    for language in languages:
        try:
            candidates = _FINDERS[language](sandbox.limits, [Path(folder) for folder in libraries])
        except _Missing as error:
            missing[language] = f"{error} (Debian: apt install {_PACKAGES.get(language, 'python3')})"
            continue
        for runtime in candidates:
            fault = _fault(runtime, sandbox)
            if not fault:
                found[language] = runtime
                missing.pop(language, None)
                break
            missing[language] = f"{runtime.version} is installed but {fault}"
    return found, missing


def _fault(runtime: Runtime, sandbox: Sandbox) -> str:
    """The fault of a runtime in the sandbox; empty if the runtime passes a right program and fails a wrong one."""
    # The first run reads much from the disk, so its time says nothing about later runs.
    patient = replace(sandbox, limits=replace(sandbox.limits, wall_seconds=10 * sandbox.limits.wall_seconds))
    right = runtime.run(_CHECKS[runtime.language].replace("EXPECTED", "1"), patient)
    if right.status != "ok":
        return f"cannot run in the sandbox: {right.status} {' '.join(right.output.split())[-200:]}".strip()
    wrong = runtime.run(_CHECKS[runtime.language].replace("EXPECTED", "2"), patient)
    return "" if wrong.status == "failed" else f"in the sandbox a wrong program ends with status {wrong.status!r}"


def describe(runtimes: Mapping[str, Runtime]) -> dict[str, str]:
    """Versions by language, JSON-able."""
    return {language: runtime.version for language, runtime in runtimes.items()}
