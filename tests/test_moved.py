"""Import paths of earlier versions still give the modules, with a warning that names the new path."""

import importlib
import subprocess
import sys

import pytest

from monet.moved import MOVED

FRESH = """
import warnings, importlib, sys
for old, new in zip(sys.argv[1::2], sys.argv[2::2]):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = importlib.import_module(old)
    assert found is importlib.import_module(new) and found.__spec__.name == new, old
    assert any(new in str(one.message) for one in told), old
"""


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"moved to {MOVED[old]};"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])


@pytest.mark.slow
def test_old_paths_are_imported_first_in_a_fresh_process():
    chosen = ("monet.losses", "monet.eval.ablate", "monet.eval.toxicity.choose")  # from different packages
    words = [word for old in chosen for word in (old, MOVED[old])]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True)


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
