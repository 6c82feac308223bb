"""The pinned sets of packages fit pyproject.toml and can be installed on any platform."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

from benchmarks.aot import LIMITS
from constraints import pins
from monet import extras

PROJECT = pins.read_project()
REQUIREMENTS = [
    Requirement(line)
    for lines in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for line in lines
]


def read(name: str) -> dict[str, Requirement]:
    lines = (pins.HERE / name).read_text(encoding="utf-8").splitlines()
    return {requirement.name: requirement for requirement in map(Requirement, filter(is_pin, lines))}


def is_pin(line: str) -> bool:
    return not line.startswith("#")


def version(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def test_oldest_pins_are_the_lower_bounds():
    """After a change of pyproject.toml, rewrite the file with `make pins`."""
    assert (pins.HERE / "oldest.txt").read_text(encoding="utf-8") == pins.oldest_text()


@pytest.mark.parametrize("name", ["tested.txt", "oldest.txt"])
def test_pins_are_exact_and_bound_to_no_machine(name):
    for line in filter(is_pin, (pins.HERE / name).read_text(encoding="utf-8").splitlines()):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*(; \w+ (==|>=) ['\"][\w.]+['\"])?", line), line


def test_tested_pins_are_within_the_bounds_and_leave_no_dependency_out():
    tested = read("tested.txt")
    apart = ("flash-attn", "transformer-lens", *pins.LEFT_OUT)  # only in extras that `make test` omits
    wanted = {item.name: item for item in REQUIREMENTS if item.name not in apart}
    assert not {canonicalize_name(name) for name in wanted} - tested.keys(), "write tested.txt again with `make pins`"
    wrong = [f"{name} {version(tested[canonicalize_name(name)])}" for name, item in wanted.items()
             if not item.specifier.contains(version(tested[canonicalize_name(name)]))]  # fmt: skip
    assert not wrong, f"outside of pyproject.toml's bounds: {wrong}"


@pytest.mark.parametrize("name", ["tested.txt", "oldest.txt"])
def test_kernels_have_limits_for_each_pinned_triton(name):
    release = Version(version(read(name)["triton"])).release
    assert (LIMITS / f"{'.'.join(map(str, (*release, 0, 0)[:3]))}.json").is_file()


def test_a_local_version_and_our_own_package_stay_out_and_linux_is_marked():
    found = [("Torch", "2.13.0+cpu"), ("triton", "3.7.1"), ("typing_extensions", "4.16.0"), (pins.OURS, "0.1.0")]
    assert pins.tested(found) == [
        "torch==2.13.0", "triton==3.7.1; sys_platform == 'linux'", "typing-extensions==4.16.0",
    ]  # fmt: skip


def test_newest_has_no_upper_bound_but_torchs():
    project = {
        "dependencies": ["torch>=2.10,<2.14", "transformers>=5.17,<5.25"],
        "optional-dependencies": {"dev": [f"{pins.OURS}[eval]", "ruff>=0.17"], "eval": ["lm-eval[hf]>=0.4.13,<0.4.14"]},
    }
    assert pins.newest(project) == ["torch<2.14,>=2.10", "transformers>=5.17"]
    assert pins.newest(project, "dev")[:2] == ["lm-eval[hf]>=0.4.13", "ruff>=0.17"]


def test_a_requirement_without_a_lower_bound_is_refused():
    project = {"dependencies": ["numpy<3"], "optional-dependencies": {"browser": [], "dev": [], "quantisation": []}}
    with pytest.raises(ValueError, match="numpy<3 needs one lower bound"):
        pins.oldest(project)


# Libraries from which this project uses names with a leading underscore.
PRIVATE_PARTS = ("deepspeed", "jsonargparse", "lightning", "lm-eval", "torch", "transformers", "triton")


@pytest.mark.parametrize("name", PRIVATE_PARTS)
def test_a_library_whose_private_parts_are_used_has_an_upper_bound(name):
    (found,) = [item for item in REQUIREMENTS if item.name == name]
    assert any(part.operator == "<" for part in found.specifier), f"{name}: bound it by the next release not tried"


def test_messages_name_extras_that_exist():
    root = pins.PYPROJECT.parent
    files = [path for folder in ("monet", "eval", "kernels") for path in (root / folder).rglob("*.py")]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"""install_command\(["'](\w+)["']\)""", sources))
    assert {"deepspeed", "eval", "sentencepiece"} <= named <= PROJECT["optional-dependencies"].keys()
    assert not re.findall(r"pip install ['\"][\w-]+(?:\[\w+\])?==", sources), "name an extra, not a version"


def test_the_command_for_an_extra_fits_a_checkout_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.0")
    assert extras.install_command("eval") == "pip install 'monet-experts[eval]'"

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    assert extras.install_command("eval") == "pip install -e '.[eval]' in Monet's folder"
