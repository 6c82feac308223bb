"""Every module imports from a wheel and an editable install, also next to Hugging Face's `kernels`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from tests.marks import nightly
from tests.test_layout import MODULES, ROOT

SHIPPED = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "monet", "kernels", "eval"]

IMPORT_EVERYTHING = """
    import importlib, json, sys
    files = {}
    for name in json.loads(sys.argv[1]):
        if name != "monet.__main__":
            module = importlib.import_module(name)
            files[name] = module.__file__ or list(module.__path__)[0]
    print(json.dumps(files))
"""

# Replaces the package that transformers looks for: any name imported from it is a class or makes a decorator.
FAKE_HF_KERNELS = """
__version__ = "0.18.2"
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    methods = {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, decorated: decorated}
    return type(name, (), methods)
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command[:3]} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the package's sources, so that building leaves nothing in the tree."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, checkout, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, tmp_path_factory) -> tuple[Path, Path]:
    """(python of a new environment with our package and this environment's other packages, folder of our modules)."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path file does not run this environment's path files, so its editable install of Monet is not visible.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source = request.getfixturevalue("checkout" if request.param == "editable" else "wheel")
    what = ["--editable", source] if request.param == "editable" else [source]
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--ignore-installed", *what, cwd=folder)
    return python, source if request.param == "editable" else site


def add_hf_kernels(python: Path) -> None:
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=python.parent).strip())
    (site / "kernels").mkdir(exist_ok=True)
    (site / "kernels" / "__init__.py").write_text(FAKE_HF_KERNELS)
    record = site / "kernels-0.18.2.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    in_tree = {str(path.relative_to(ROOT)) for path in MODULES.values()}
    wanted = {name if name.startswith("monet/") else f"monet/{name}" for name in in_tree}
    assert {name for name in names if name.endswith(".py")} == wanted
    assert "monet/py.typed" in names
    sources = {path.name for path in (ROOT / "kernels" / "decode").iterdir() if path.suffix in (".cpp", ".h")}
    assert sources and {f"monet/kernels/decode/{name}" for name in sources} <= set(names)
    assert "monet/eval/scorers/words.safetensors" in names
    assert {"monet/eval/reporting/page.html.j2", "monet/eval/reporting/page.css"} <= set(names)
    page = {path.name for path in (ROOT / "eval" / "view" / "page").iterdir()}
    assert page and {f"monet/eval/view/page/{name}" for name in page} <= set(names)
    assert all(name.startswith(("monet/", "monet_experts-")) for name in names)
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hf_kernels",
    [nightly(False, id="alone"), pytest.param(True, id="beside HF kernels")],
)
def test_every_module_imports_outside_the_checkout(installed, hf_kernels, tmp_path):
    python, home = installed
    if hf_kernels:
        add_hf_kernels(python)
    output = run(python, "-c", textwrap.dedent(IMPORT_EVERYTHING), json.dumps(list(MODULES)), cwd=tmp_path)
    files = json.loads(output.splitlines()[-1])
    strangers = {name: file for name, file in files.items() if not Path(file).is_relative_to(home)}
    assert not strangers, f"not from the installed package: {strangers}"
    if hf_kernels:
        run(python, "-c", "import kernels; assert kernels.__version__ == '0.18.2', kernels.__file__", cwd=tmp_path)


@pytest.mark.slow
def test_command_runs_outside_the_checkout(installed, tmp_path):
    python, _ = installed
    assert "data prepare" in run(python.with_name("monet"), "--help", cwd=tmp_path)
    assert "data prepare" in run(python, "-m", "monet", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_transformers_is_not_disturbed_by_the_folder_kernels(installed, checkout):
    """Runs in a checkout's root, which `python train.py` puts first on the path, with HF's package installed too."""
    python, _ = installed
    add_hf_kernels(python)
    code = "from transformers import LlamaForCausalLM; import kernels, monet.kernels.checks; print(kernels.__version__)"
    assert run(python, "-c", code, cwd=checkout).split() == ["0.18.2"]
