"""`monet doctor` reports nothing in a good environment; each planted fault gives one line that names its fix."""

from __future__ import annotations

import email.message
import functools
import json
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from monet import cli
from monet.doctor import command, machine, packages
from monet.doctor.findings import Caution, Check, Fault, Finding, Skipped, find
from monet.kernels import dispatch, masked, products
from monet.kernels.decode import build, op
from monet.masks import active as masking
from monet.model import cache_keyword
from monet.model.llama_parts import LlamaAttention, LlamaRMSNorm

BOUNDS = ">=5.17,<6"


class FakeDistribution:
    """Replaces the metadata of an installed Monet."""

    version = "0.1.0"

    def __init__(self, *requires: str) -> None:
        self.requires = list(requires)
        self.metadata = email.message.Message()
        self.metadata["Name"], self.metadata["Requires-Python"] = "monet-models", ">=3.10"
        for extra in ("dev", "eval"):
            self.metadata["Provides-Extra"] = extra


@pytest.fixture
def required(monkeypatch):
    """Plant the requirements of the installed distribution."""

    def plant(*requires: str, **installed: str) -> None:
        monkeypatch.setattr(packages, "with_our_command", lambda: [FakeDistribution(*requires)])
        monkeypatch.setattr(metadata, "packages_distributions", lambda: {"monet": ["monet-models"]})
        monkeypatch.setattr(packages, "installed_version", lambda name: installed.get(name.replace("-", "_")))

    plant(f"transformers{BOUNDS}", "torch>=2.6,<2.14", transformers="5.24.0", torch="2.13.0+cpu")
    return plant


def one(name: str) -> Finding:
    """The finding of one check of the self-test."""
    return find(next(check for check in command.self_test(packages.required()) if check.name == name))


def test_a_good_installation(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told.keys() == {
        "ok", "monet", "versions", "devices", "compiler", "variables", "optional", "checks"
    }  # fmt: skip
    checks = {check["name"]: check for check in told["checks"]}
    assert all(check.keys() == {"name", "ok", "status", "seconds", "detail", "fix"} for check in checks.values())
    tested = [check.name for check in command.self_test([])]
    assert set(tested) <= checks.keys() and "cached generation" in tested
    assert not [check for check in checks.values() if not check["ok"]]
    assert all(checks[name]["status"] == "ok" for name in tested[:6])
    assert told["devices"]["cpu"]["threads"] == torch.get_num_threads()


def test_the_terminal_shows_everything(required, monkeypatch, capsys):
    monkeypatch.setattr(command, "self_test", lambda required: iter([Check("easy", lambda: "[red]is[/red] fine", "")]))
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for words in ("transformers", BOUNDS, "CPU ", "compiler ", "bubblewrap", "[red]is[/red] fine"):
        assert words in shown


@pytest.mark.parametrize("planted", ["renamed", "ignored"])
def test_a_cache_keyword_that_transformers_renamed(planted, required, monkeypatch, capsys):
    monkeypatch.setattr(cache_keyword, "CACHE_KEYWORD", cache_keyword.CACHE_KEYWORD)
    if planted == "renamed":
        other = next(name for name in cache_keyword.CACHE_KEYWORDS if name != cache_keyword.CACHE_KEYWORD)
        monkeypatch.setattr(cache_keyword, "CACHE_KEYWORD", other)
    else:
        whole = LlamaAttention.forward

        @functools.wraps(whole)
        def drops_the_cache(*args, **kwargs):
            return whole(*args, **kwargs | {cache_keyword.CACHE_KEYWORD: None})

        monkeypatch.setattr(LlamaAttention, "forward", drops_the_cache)
    whole_test = command.self_test
    monkeypatch.setattr(
        command, "self_test", lambda required: (one for one in whole_test(required) if one.name == "cached generation")
    )
    assert cli.main(["doctor"]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("failed"))
    assert "cached generation" in line and f'; fix: pip install "transformers{BOUNDS}"' in line
    assert ("Monet names the cache" if planted == "renamed" else "with a dynamic cache: new token ") in line


def test_logits_that_are_not_the_recorded_ones(required, monkeypatch):
    whole = LlamaRMSNorm.forward
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, x: whole(self, x) * (1 + 1e-4))
    found = one("golden logits")
    assert found.status == "failed" and "logits differ from" in found.detail
    assert found.fix == f'pip install "torch>=2.6,<2.14" "transformers{BOUNDS}"'


@pytest.mark.parametrize(
    ("weight", "detail"), [(None, "those without the removed experts"), (0.99, "keeps every expert changes the logits")]
)
def test_a_mask_law_that_does_not_hold(weight, detail, monkeypatch):
    def resolve(self, model, call, B, T, device):
        if weight is None or call is None:
            return [None] * model.config.num_routing_groups
        return [masked.Keep(weight * torch.ones(1, 6, 6))] * model.config.num_routing_groups

    assert one("mask laws").ok
    monkeypatch.setattr(masking.ActiveMasks, "resolve", resolve)
    found = one("mask laws")
    assert found.status == "failed" and detail in found.detail and "install Monet again" in found.fix


class Doubled:
    """The decoding ops with a sum that is twice the correct one."""

    def __getattr__(self, name):
        right = getattr(torch.ops.monet, name)
        return (lambda *args: 2 * right(*args)) if name == "active_sum" else right


@pytest.mark.parametrize(
    "name",
    ["routing, plain torch", "expert layers, plain torch", "active experts, plain torch", "active experts, C++",
     "matrix products, torch"],
)  # fmt: skip
def test_a_broken_kernel(name, required, monkeypatch):
    if name == "active experts, C++" and not build.has_cpp():
        pytest.skip("no C++ kernels here")
    assert one(name).ok
    implementations = dispatch._IMPLEMENTATIONS["torch"]
    broken = dict(implementations)
    monkeypatch.setitem(dispatch._IMPLEMENTATIONS, "torch", broken)
    broken["thresholded_softmax"] = lambda z, *rest: z.unflatten(1, (2, -1)).softmax(-1).flatten(1)
    right = implementations["vertical_mixing"]
    broken["vertical_mixing"] = right._replace(
        forward=lambda *args: tuple(1.001 * mixed for mixed in right.forward(*args))
    )
    monkeypatch.setattr(op, "ops_for", lambda *weights: Doubled())
    monkeypatch.setattr(products, "FLOAT32_ERROR", 0.0)
    found = one(name)
    assert found.status == "failed" and found.detail and found.fix
    assert ("MONET_CPP=0" in found.fix) == ("C++" in name)


@pytest.mark.parametrize("tools", [True, False], ids=["a build that fails", "no compiler"])
def test_no_cpp_kernels(tools, monkeypatch):
    """Without a compiler results are correct but slower; a compiler that cannot build is a fault."""

    def load():
        raise RuntimeError("c++: error: unrecognised option")

    paths = {"compiler": "c++", "ninja": "ninja"} if tools else {"compiler": None, "ninja": "ninja"}
    monkeypatch.setattr(build, "load", load)
    monkeypatch.setattr("monet.doctor.kernel_paths.build_tools", lambda: paths)
    build.has_cpp.cache_clear()
    try:
        found = one("active experts, C++")
    finally:
        build.has_cpp.cache_clear()
    if tools:
        assert found.status == "failed" and "unrecognised option" in found.detail and "MONET_CPP=0" in found.fix
    else:
        assert found.status == "warning" and found.ok and "no compiler" in found.detail and "g++" in found.fix


def test_a_compiler_is_looked_for_as_torch_does(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert machine.build_tools()["compiler"] is None and machine.compiler()["version"] is None
    program = tmp_path / "my-c++"
    program.write_text("#!/bin/sh\necho mine 1.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert machine.compiler()["compiler"] == str(program) and machine.compiler()["version"] == "mine 1.0"


def test_paths_that_do_not_run_here_say_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert one("routing, Triton").detail == "torch sees no CUDA device"
    monkeypatch.setenv("MONET_CPP", "0")
    found = one("active experts, C++")
    assert found.status == "skipped" and "MONET_CPP=0" in found.detail
    monkeypatch.setenv("MONET_KERNELS", "fast")
    found = one("routing, plain torch")
    assert found.status == "failed" and "is no known backend" in found.detail
    assert found.fix.endswith("; or unset MONET_KERNELS, MONET_CPP")


@pytest.mark.parametrize(
    ("requires", "installed", "tested", "status", "words"),
    [
        (f"transformers{BOUNDS}", "5.24.0", "5.24.0", "ok", "5.24.0"),
        (f"transformers{BOUNDS}", "5.20.0", "5.24.0", "ok", "5.20.0"),
        (f"transformers{BOUNDS}", "6.0.1", "5.24.0", "failed", "6.0.1 is not supported; allowed: >=5.17,<6"),
        (f"transformers{BOUNDS}", "4.57.0", None, "failed", "4.57.0 is not supported"),
        (f"transformers{BOUNDS}", "5.30.0", "5.24.0", "warning", "newer than 5.24.0"),
        (f"transformers{BOUNDS}", None, "5.24.0", "failed", "not installed"),
        ("transformers", "5.24.0+cpu", "5.24.0", "ok", "any version is allowed"),
    ],
)
def test_versions(requires, installed, tested, status, words, required, monkeypatch):
    required(requires, **({} if installed is None else {"transformers": installed}))
    monkeypatch.setattr(packages, "tested_versions", lambda: iter([("transformers", tested)] if tested else []))
    (package,) = packages.required()
    found = find(package.check())
    assert found.status == status and words in found.detail
    if status == "failed":
        assert found.fix.startswith(f'pip install "transformers{BOUNDS}"')
        assert tested is None or found.fix.endswith(f"pip install transformers=={tested}")


def test_a_version_outside_the_bounds_ends_with_1(required, monkeypatch, capsys):
    required(f"transformers{BOUNDS}", transformers="7.0.0")
    monkeypatch.setattr(command, "self_test", lambda required: iter(()))
    assert cli.main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"] and told["versions"]["transformers"]["installed"] == "7.0.0"
    assert [check["name"] for check in told["checks"] if not check["ok"]] == ["version of transformers"]


def test_which_requirements_count(required):
    required(
        "torch>=2.6", "torch<2.14", "triton>=3.6; sys_platform == 'plan9'", "lm-eval[hf]>=0.4.13; extra == 'eval'",
        "pytest>=8; extra == 'dev'", "monet-models[eval]; extra == 'eval'", torch="2.13.0",
    )  # fmt: skip
    assert [(package.name, package.bounds) for package in packages.required()] == [("torch", ">=2.6,<2.14")]
    (part,) = packages.of_extras()
    assert (part.name, part.installed, part.bounds, part.extra) == ("lm-eval", None, ">=0.4.13", "eval")


def test_the_tested_set_of_a_checkout(monkeypatch, tmp_path):
    package = tmp_path / "monet" / "__init__.py"
    monkeypatch.setattr("monet.__file__", str(package))
    assert list(packages.tested_versions()) == []
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "constraints").mkdir()
    (tmp_path / "constraints" / "tested.txt").write_text(
        "# made by hand\n-r other.txt\n\nTorch==2.13.0  # cpu\nlm_eval==0.4.13 ; python_version >= '3'\nrich>=13\n"
        "numpy==1.0; python_version < '3'\nfilelock==4.3.1 --hash=sha256:00\n"
    )
    assert dict(packages.tested_versions()) == {"torch": "2.13.0", "lm-eval": "0.4.13", "filelock": "4.3.1"}


def test_another_distribution_with_our_name(required, monkeypatch):
    assert packages.check_installation().startswith("monet-models 0.1.0, imported from ")
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"monet": ["monet-models", "monet"]})
    found = find(Check("installation", packages.check_installation, ""))
    assert found.status == "failed" and found.fix.startswith("pip uninstall monet, then install Monet again")
    former = FakeDistribution()
    former.metadata.replace_header("Name", "monet")
    monkeypatch.setattr(packages, "with_our_command", lambda: [FakeDistribution(), former])
    found = find(Check("installation", packages.check_installation, ""))
    assert (found.status, found.fix) == ("warning", "pip uninstall monet")
    monkeypatch.setattr(packages, "with_our_command", list)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    found = find(Check("installation", packages.check_installation, ""))
    assert found.status == "warning" and "pip install -e ." in found.fix


def test_absent_parts_are_no_failures(required, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MONET_BROWSER", raising=False)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    required("lm-eval>=0.4.13; extra == 'eval'")
    parts = machine.optional_parts(packages.of_extras())
    assert {part.found for part in parts} == {None} and all(part.install and part.needed_for for part in parts)
    monkeypatch.setattr(command, "self_test", lambda required: iter(()))
    assert not command.examine().failed


def test_programs_are_those_that_the_suites_look_for():
    from monet.eval.sandbox import runtimes

    assert {"python", *machine.RUNTIMES} == runtimes._FINDERS.keys()
    assert {language: debian for language, (_, debian) in machine.RUNTIMES.items()} == runtimes._PACKAGES
    assert machine.RUNTIMES["lua"][0] == (runtimes._LUAS,) and machine.RUNTIMES["php"][0] == (runtimes._PHPS,)


def _print_and_return() -> str:
    print("a library's own words")
    return "fine"


def _assert_nothing() -> str:
    raise AssertionError


@pytest.mark.parametrize(
    ("run", "status", "detail"),
    [
        (lambda: "good", "ok", "good"),
        (lambda: str(1 // 0), "failed", "ZeroDivisionError: integer division or modulo by zero"),
        (_assert_nothing, "failed", "AssertionError: in _assert_nothing, "),
    ],
)
def test_a_crash_is_a_finding(run, status, detail):
    found = find(Check("a check", run, "do this"))
    assert found.status == status and found.detail.startswith(detail) and found.fix == ("" if found.ok else "do this")


@pytest.mark.parametrize(
    ("error", "status", "fix"),
    [
        (Fault("bad"), "failed", "default"),
        (Fault("bad", "own"), "failed", "own"),
        (Caution("slow"), "warning", "default"),
        (Skipped("no"), "skipped", ""),
    ],
)
def test_findings_of_each_kind(error, status, fix):
    def run() -> str:
        raise error

    found = find(Check("a check", run, "default"))
    assert (found.status, found.fix, found.ok) == (status, fix, status != "failed")


def test_json_is_all_there_is_on_stdout(required, monkeypatch, capsys):
    monkeypatch.setattr(command, "self_test", lambda required: iter([Check("loud", _print_and_return, "")]))
    assert cli.main(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["checks"][-1]["detail"] == "fine" and "a library's own words" in shown.err


def test_torch_that_does_not_import_is_a_line(required, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(command, "self_test", lambda required: iter(()))
    diagnosis = command.examine()
    assert [finding.name for finding in diagnosis.failed] == ["devices"]
    assert diagnosis.failed[0].fix.startswith('pip install "torch>=2.6,<2.14"') and diagnosis.devices == {}


@pytest.mark.parametrize("package", ["packaging", "rich"])
def test_a_package_that_doctor_itself_needs_is_named(package):
    code = f"import sys; sys.modules[{package!r}] = None; from monet import cli; sys.exit(cli.main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"the package {package} is not installed" in done.stderr and "pip install -e ." in done.stderr


def test_help_is_quick_and_unknown_words_are_refused(capsys):
    assert cli.main(["doctor", "--help"]) == 0 and "usage: monet doctor" in capsys.readouterr().out
    assert cli.main(["doctor", "--jsno"]) == 2
    code = (
        "import sys; from monet import cli; cli.main(['doctor', '--help']);"
        "print(sorted({'torch', 'transformers', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
