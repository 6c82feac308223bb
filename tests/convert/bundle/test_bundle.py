"""The bundler: modules of a toy package become one file with the same behaviour, or a refusal that names the module."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from itertools import count
from typing import Any

import pytest

from monet.convert.bundle import bundle, modules

NUMBERS = count()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A function that writes a package (module -> source) and returns the bundle's text for one name."""
    name = f"toy{next(NUMBERS)}"  # a unique name, since Python caches imports
    monkeypatch.setattr(modules, "PACKAGE", name)
    monkeypatch.setattr(bundle, "PACKAGE", name)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / name

    def make(root: str = "top:main", stand_ins: dict[str, str] | None = None, **sources: str) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "__init__.py").touch()
        for module, source in sources.items():
            (folder / f"{module}.py").write_text(re.sub(r"\btoy\b", name, textwrap.dedent(source)))
        module, _, function = root.partition(":")
        swaps = {f"{name}.{old}": f"{name}.{new}" for old, new in (stand_ins or {}).items()}
        made = bundle.Bundle([(f"{name}.{module}", function)], swaps, ("numpy",), (f"{name}.private",))
        return f"{made.imports()}\n\n" + "\n\n".join(made.sections(lambda module, _: f"# {module}")) + "\n"

    return make


def run(text: str) -> Any:
    scope: dict[str, Any] = {"__name__": "made"}
    exec(compile(text, "made", "exec"), scope)
    return scope["main"]()


def test_imports_go_and_what_is_needed_stays_with_its_comments(toy):
    text = toy(
        top='''
            """Docstring of the module."""
            import json as j
            from toy.low import tell

            # A remark about main.
            def main():
                """What main does."""
                return j.loads(tell())  # here
        ''',
        low="""
            import zlib

            def tell():
                return "[1, 2]"

            # Goes with what it is about.
            def unneeded():
                return zlib.crc32(b"")
        """,
    )
    assert run(text) == [1, 2]
    for kept in ("# A remark about main.", '"""What main does."""', "# here", "import json as j"):
        assert kept in text
    for gone in ("unneeded", "zlib", "toy", "Goes with"):
        assert gone not in text.replace("# toy", ""), gone


def test_one_name_for_two_things_is_renamed_with_every_use(toy):
    text = toy(
        top="""
            from toy import low
            from toy.mid import scale as factor

            def scale(x):
                return x + 1

            class Worker:
                scale = 5

                def work(self, low_value=None):
                    scale = 7  # a variable of its own
                    return (self.scale, scale, factor(1), low.scale(1), [scale for scale in (9,)])

            def main():
                return (scale(1), *Worker().work(), (lambda scale: scale)(3), f"{factor(2)}")
        """,
        mid="""
            _KEY = 10

            def scale(x):
                return x * _KEY
        """,
        low="""
            _KEY = 100

            def scale(x):
                return x * _KEY
        """,
    )
    assert run(text) == (2, 5, 7, 10, 100, [9], 3, "20")
    assert "def scale(x):\n    return x + 1" in text and "def low_scale(x):" in text and "def mid_scale(x):" in text


def test_a_name_that_a_variable_would_hide_is_renamed(toy):
    text = toy(
        top="""
            from toy import low

            def main(keep=3):
                return low.keep(keep)
        """,
        low="""
            def keep(x):
                return -x
        """,
    )
    assert run(text) == -3
    assert "def low_keep(x):" in text and "low_keep(keep)" in text


def test_a_function_may_import_a_module_that_imports_its_own(toy):
    text = toy(
        top="""
            def main():
                from toy.late import twice

                return twice()

            def one():
                return 1
        """,
        late="""
            from toy.top import one

            def twice():
                return 2 * one()
        """,
    )
    assert run(text) == 2


def test_a_stand_in_takes_a_module_s_place(toy):
    low = "import triton\n\ndef fast():\n    return triton.x\n"
    sources = {"top": "from toy.low import fast\n\ndef main():\n    return fast()\n", "low": low}
    text = toy(**sources, plain="def fast():\n    return 'plain'\n", stand_ins={"low": "plain"})
    assert run(text) == "plain" and "triton" not in text
    with pytest.raises(modules.BundleError, match=r"low imports triton, which may be missing"):
        toy(**sources)


def test_statements_that_act_stay_and_come_in_order(toy):
    text = toy(
        top="""
            from toy.low import TABLE, enter

            enter("a", 1)
            for _key in ("b", "c"):
                enter(_key, 2)

            def main():
                return TABLE
        """,
        low="""
            TABLE = {}
            TABLE |= {"start": 0}

            def enter(key, value):
                TABLE[key] = value
        """,
    )
    assert run(text) == {"start": 0, "a": 1, "b": 2, "c": 2}


def test_an_import_that_may_fail_is_let_fail(toy):
    """transformers refuses a file that imports an absent package outside `try`, at any place in the file."""
    text = toy(
        top="""
            def main(wanted=False):
                if wanted:
                    from accelerate.utils import (
                        align_module_device,
                    )

                    return align_module_device
                return 1
        """
    )
    assert run(text) == 1
    assert "        try:\n            from accelerate.utils import (" in text and "except ImportError:" in text


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"top": "from toy.private import x\n\ndef main():\n    return x\n", "private": "x = 1\n"}, "private, which"),
        ({"top": "from toy import low\n\ndef main():\n    return low\n", "low": ""}, "as a value"),
        ({"top": "def main():\n    return missing\n"}, "uses missing, which is neither"),
        ({"top": "from .low import x\n\ndef main():\n    return x\n", "low": "x = 1\n"}, "write `from"),
        ({"top": "import os.path\n\ndef main():\n    return os\n"}, "write `import os.path as"),
        ({"top": "x = 1; y = 2\n\ndef main():\n    return x\n"}, "share a line"),
        (
            {"top": "from toy.low import y\n\ndef main():\n    return y\n", "low": "from toy.top import main\ny = 1\n"},
            "import cycle",
        ),
        (
            {
                "top": "from toy.low import y\nfrom json import loads as f\n\ndef main():\n    return f, y\n",
                "low": "from json import dumps as f\n\ndef y():\n    return f\n",
            },
            "elsewhere; rename one",
        ),
        (
            {
                "top": "from toy.low import y\n\ndef x():\n    return 1\n\ndef main():\n    return x, y\n",
                "low": "x = 1\n\ndef y():\n    global x\n    x = 2\n",
            },
            "cannot rename x",
        ),
    ],
)
def test_what_cannot_be_copied_is_refused(toy, sources, message):
    with pytest.raises(modules.BundleError, match=message):
        toy(**sources)


def test_modules_are_read_and_not_imported(toy):
    toy(
        top="from toy.low import x\n\ndef main():\n    return x\n",
        low="x = 1\nraise AssertionError('this module was imported')\n",
    )
    assert not [name for name in sys.modules if re.match(r"toy\d+\.", name)]
