"""Remote code: an export with its modelling file computes the package's numbers where the package is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import monet
from monet import ExpertMask
from monet.convert import remote_code
from monet.errors import CheckpointError
from monet.kernels import limits
from monet.model.losses import RouterLoss
from tests.convert import remote_driver
from tests.marks import nightly
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import assert_close

CLASSES = SimpleNamespace(ExpertMask=ExpertMask, RouterLoss=RouterLoss)
DTYPES = (torch.float32, torch.bfloat16)
MASK = "expert_mask.safetensors"


HYBRID = {"dense_layers": [0, 3], "intermediate_size": 40}


def saved(folder: Path, form: str = "vertical", dtype: torch.dtype = torch.float32, masked: bool = True):
    """A tiny model of the package; also saves it in the folder with its modelling file."""
    model = (tiny_model(**HYBRID) if form == "hybrid" else tiny_model(form)).to(dtype)
    if masked:
        model.set_expert_mask(ExpertMask.random(model.config, 25, seed=1))
    model.save_pretrained(folder)
    remote_code.add_remote_code(folder)
    return model


def compare(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name, tensor in found.items():
        reference = wanted[name.removeprefix("reloaded: ")]
        if name.removeprefix("reloaded: ").startswith(("greedy", "sampled", "beams")):
            assert torch.equal(tensor, reference), name
        else:
            assert_close(name, tensor, reference, dtype)


@pytest.fixture(scope="module")
def source() -> str:
    return remote_code.modelling_source()


@pytest.fixture
def module(source, tmp_path, monkeypatch) -> ModuleType:
    """The modelling file, imported in this process."""
    path = tmp_path / remote_code.MODELLING_FILE
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("generated_modeling_monet", path)
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, made)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("lean", [False, True], ids=["autograd", "own backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", [*FORMS, "hybrid"])
def test_the_file_computes_what_the_package_computes(form, dtype, lean, module, tmp_path, monkeypatch):
    model = saved(tmp_path / "model", form, dtype)
    if lean:  # use the step of large layers at this size too
        monkeypatch.setattr(limits, "LEAN_FROM_ELEMENTS", 0)
        module.LEAN_FROM_ELEMENTS = 0
    loaded = module.MonetForCausalLM.from_pretrained(tmp_path / "model")
    found, wanted = remote_driver.measure(loaded, module), remote_driver.measure(model, CLASSES)
    assert found.keys() == wanted.keys()
    compare(found, wanted, dtype)
    if dtype == torch.float32:  # bfloat16 rounds differently without a cache, which can switch a gate at its threshold
        assert torch.equal(wanted["greedy, cache=True"], wanted["greedy, cache=False"])
    assert not torch.equal(wanted["logits"], wanted["logits, mask argument"])


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("vertical", torch.float32), nightly("horizontal", torch.bfloat16)],
)
@pytest.mark.slow
def test_the_folder_runs_where_the_package_is_not_installed(form, dtype, tmp_path):
    """Runs in another process, isolated from this checkout, where importing monet fails."""
    model = saved(tmp_path / "model", form, dtype)
    results, scratch = tmp_path / "results.safetensors", tmp_path / "again"
    command = [sys.executable, "-I", remote_driver.__file__, tmp_path / "model", results, scratch]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found, wanted = load_file(results), remote_driver.measure(model, CLASSES)
    assert found.keys() == {*wanted, *(f"reloaded: {name}" for name in wanted)}
    compare(found, wanted, dtype)
    assert (scratch / MASK).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "masked"),
    [
        nightly("horizontal", False, id="horizontal-whole"),
        nightly("vertical", True, id="vertical-masked"),
        nightly("horizontal", True, id="horizontal-masked"),
        nightly("vertical", False, id="vertical-whole"),
    ],
)
def test_the_file_s_model_compiles(form, masked, module, tmp_path):
    """Without a mask there is one graph; with a mask the experts stay outside the graphs."""
    model = saved(tmp_path / "model", form, masked=masked)
    loaded = module.MonetForCausalLM.from_pretrained(tmp_path / "model")
    compiled = torch.compile(loaded, backend="eager", fullgraph=not masked)
    with torch.no_grad():
        assert_close("logits", compiled(tokens()).logits, model(tokens()).logits)
    compiled(tokens()).logits.square().sum().backward()
    model(tokens()).logits.square().sum().backward()
    wanted = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        if "layers.0.moe" in name:
            assert_close(name, parameter.grad, wanted[name].grad)


def test_the_file_needs_only_what_transformers_needs(source, tmp_path):
    path = tmp_path / remote_code.MODELLING_FILE
    path.write_text(source)
    py_compile.compile(str(path), doraise=True)
    strangers = set(get_imports(path)) - sys.stdlib_module_names
    assert strangers <= {"huggingface_hub", "numpy", "safetensors", "torch", "transformers", "typing_extensions"}
    assert get_relative_imports(path) == []
    for word in ("import monet", "from monet", "triton.jit", "torch.library", "cpp_extension", "torch.ops.monet"):
        assert word not in source, word


def test_no_name_in_the_file_is_undefined_unused_or_defined_twice(source, tmp_path):
    (tmp_path / "modeling_monet.py").write_text(source)
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert ruff is not None
    done = subprocess.run([ruff, "check", "--isolated", "--select", "F", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_file_says_what_it_is_and_keeps_comments_and_docstrings(source):
    head = source[:1200]
    assert f"Monet {monet.__version__}" in head and "GENERATED" in head and "Apache-2.0" in head
    router = (Path(monet.__file__).parent / "model" / "router.py").read_text(encoding="utf-8")
    for line in ("class MonetRouter(nn.Module):", "# Autocast would compute these sums in half precision."):
        assert line in router and line in source
    assert "# monet.model.router:\n# Product-key router" in source


@pytest.mark.slow
def test_the_file_is_the_same_every_time(source):
    words = ["-c", "from monet.convert.remote_code import modelling_source; print(modelling_source(), end='')"]
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    again = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, env=environment)
    assert again.stdout == source


def test_the_package_is_used_where_it_is_imported(tmp_path):
    model = saved(tmp_path)
    for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **trust)
        assert type(loaded) is monet.MonetForCausalLM
        assert loaded.expert_mask == model.expert_mask
        assert type(AutoConfig.from_pretrained(tmp_path, **trust)) is monet.MonetConfig
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_every_auto_class_that_knows_monet_is_in_the_map(source):
    found = remote_code.auto_map()
    assert found["AutoConfig"] == "modeling_monet.MonetConfig"
    assert found["AutoModel"] == "modeling_monet.MonetModel"
    assert found["AutoModelForCausalLM"] == "modeling_monet.MonetForCausalLM"
    for code in found.values():
        assert f"\nclass {code.removeprefix('modeling_monet.')}(" in source


def spoil(folder: Path, fault: str) -> None:
    weights = load_file(folder / "model.safetensors")
    match fault:
        case "another model's mask":
            mask = ExpertMask.load(folder / MASK)
            ExpertMask(mask.keep_REE, fingerprint="0" * 32).save(folder / MASK)
        case "damaged mask":
            (folder / MASK).write_bytes(b"\0" * 64)
        case "lost mask":
            (folder / MASK).unlink()
        case "missing weight":
            del weights["model.norm.weight"]
        case "unknown weight":
            weights["model.other"] = torch.zeros(3)
        case "not a number":
            weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


FAULTS = ["none", "another model's mask", "damaged mask", "lost mask", "missing weight", "unknown weight",
          "not a number"]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_file_refuses_what_the_package_refuses(fault, module, tmp_path):
    folder = tmp_path / "model"
    saved(folder)
    spoil(folder, fault)

    def outcome(model_class) -> str:
        try:
            return f"loaded, {model_class.from_pretrained(folder).expert_mask}"
        except ValueError as error:
            return f"{type(error).__name__}: {error}"

    wanted = outcome(monet.MonetForCausalLM)
    assert outcome(module.MonetForCausalLM) == wanted
    if fault != "lost mask":
        assert wanted.startswith("loaded, ExpertMask(25 of" if fault == "none" else "CheckpointError")


def test_only_a_monet_folder_gets_remote_code(tmp_path):
    with pytest.raises(CheckpointError, match="no readable configuration"):
        remote_code.add_remote_code(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="'llama'"):
        remote_code.add_remote_code(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
