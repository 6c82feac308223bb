"""Modules become one script that runs like them."""

import json
import shutil
import subprocess

import pytest

from monet.errors import ConfigError
from monet.eval.view import files
from monet.eval.view.bundle import bundled

MAIN = """import { twice as two, NAME } from "./a.js";
import * as b from "./b.js";
const x = two(3);
console.log(NAME, x, b.last());
"""
A = """import { last } from "./b.js";
export const NAME = "a";
export function twice(x) { return x + x + last(); }
"""
B = """const hidden = 1;
export async function later() {}
export function last() { return hidden; }
export class B {}
"""
MODULES = {"main": MAIN, "a": A, "b": B}


def test_modules_come_after_those_they_import():
    script = bundled(MODULES, "main")
    assert script.index("module_b =") < script.index("module_a =") < script.index("module_main =")
    assert "return { later, last, B };" in script and "twice: two" in script
    assert "import " not in script and "export " not in script


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_runs_like_the_modules():
    done = subprocess.run(["node", "-e", bundled(MODULES, "main")], capture_output=True, text=True, check=True)
    assert done.stdout == "a 7 1\n"


@pytest.mark.parametrize(
    "source",
    [
        'import x from "./b.js";\n',
        "export default 3;\n",
        "export { x };\n",
        'export * from "./b.js";\n',
        'import "./b.js";\n',
    ],
)
def test_other_forms_are_refused(source):
    with pytest.raises(ConfigError, match="form"):
        bundled({**MODULES, "main": source}, "main")


def test_circles_are_refused():
    circle = {"main": 'import { a } from "./a.js";\n', "a": 'import { b } from "./main.js";\n'}
    with pytest.raises(ConfigError, match="main -> a -> main"):
        bundled(circle, "main")


def test_the_page_can_be_joined():
    modules = {name.removesuffix(".js"): text.decode() for name, text, _ in files.files() if name.endswith(".js")}
    script = bundled(modules, "main")
    assert all(f"module_{name} =" in script for name in modules) and json.dumps(script)
