"""Import paths of earlier versions still give the modules, with a warning that names the new path."""

import importlib
import subprocess
import sys

import pytest

from monet.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old):
    code = f"""
import warnings, importlib, sys
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = importlib.import_module({old!r})
assert found is importlib.import_module({MOVED[old]!r}) and found.__spec__.name == {MOVED[old]!r}
assert any({MOVED[old]!r} in str(one.message) for one in told)
"""
    if old in ("monet.losses", "monet.eval.ablate", "monet.eval.toxicity.choose"):  # others are alike: no new process
        subprocess.run([sys.executable, "-c", code], check=True)
    else:
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"moved to {MOVED[old]};"):
            found = importlib.import_module(old)
        assert found is importlib.import_module(MOVED[old])


def test_from_imports_and_unknown_names():
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("monet.eval.selection", None)
        from monet.eval.selection import select  # pyright: ignore[reportMissingImports]
    assert select is importlib.import_module("monet.eval.attribution.selection").select
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("monet.eval.no_such_module")


def test_a_module_in_a_moved_package_is_no_second_copy():
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("monet.eval.harness.general_result", None)
        found = importlib.import_module("monet.eval.harness.general_result")
    assert found is importlib.import_module("monet.eval.suites.questions.general_result")


def test_an_old_path_does_not_run_as_a_program():
    done = subprocess.run([sys.executable, "-m", "monet.export"], capture_output=True, text=True)
    assert done.returncode and "monet.export has moved to monet.convert.export" in done.stderr
