"""Which tests a newcomer is sent to."""

from __future__ import annotations

from tools.imports import EVERYTHING, MODULES, imports_of
from tools.tests_of import main, nearest_tests


def test_a_test_of_the_name_comes_first_then_importers_of_the_room():
    graph = {
        "tests.data.test_a": {"monet.data.a"}, "tests.data.test_user": {"monet.data.b"},
        "tests.aside.test_user": {"monet.data.b"}, "tests.aside.test_far": {"monet.far"},
        "monet.far": {"monet.data.c"}, "tests.aside.help": {"monet.data.c"}, "monet.data.d": set(),
    }  # fmt: skip
    assert nearest_tests("monet.data.a", graph) == (0, ["tests.data.test_a"])
    assert nearest_tests("monet.data.b", graph) == (1, ["tests.data.test_user", "tests.aside.test_user"])
    assert nearest_tests("monet.data.c", graph) == (2, ["tests.aside.test_far"])
    assert nearest_tests("monet.data.d", graph)[1] == []


def test_most_modules_are_tested_directly():
    """At most one module in ten is further than two imports from a test; those are found by their room."""
    graph = imports_of(EVERYTHING)
    modules = [name for name, path in MODULES.items() if path.name != "__init__.py"]
    near = [name for name in modules if (found := nearest_tests(name, graph))[1] and found[0] <= 2]
    assert len(near) >= 0.9 * len(modules)


def test_the_command(capsys):
    assert main(["monet/model/router.py", "monet/errors.py", "eval/sandbox/probe.py"]) == 0
    out = capsys.readouterr().out
    assert "router.py: has a test of its name\n  tests/model/test_router.py\n" in out
    assert "errors.py: tests import it" in out and " more\n" in out
    assert "see the tests of its room, tests/eval/sandbox/" in out
    assert main(["README.md"]) == 1 and "README.md" in capsys.readouterr().err
