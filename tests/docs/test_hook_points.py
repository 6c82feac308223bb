"""The examples of docs/hook-points.md run unchanged, and all libraries compute what a hook of torch computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hook-points.md").read_text(encoding="utf-8")


def run(section: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names after the Python block of a section; the block runs as a file, because nnsight reads its source."""
    (block,) = re.findall(rf"^## {section}$.*?^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    path = names["folder"] / f"{section.replace(' ', '_')}.py"
    path.write_text(block, encoding="utf-8")
    exec(compile(block, str(path), "exec"), names)
    return names


@pytest.fixture(scope="module")
def hooked(tmp_path_factory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        names = {"__name__": "example", "folder": tmp_path_factory.mktemp("examples")}
        return run("torch", run("A small model", names))


def test_a_hook_of_torch_changes_the_logits(hooked):
    assert (hooked["changed"] - hooked["plain"]).abs().max() > 0.1
    with torch.no_grad():
        assert torch.equal(hooked["model"](hooked["ids"]).logits, hooked["plain"])


def test_nnsight_reads_and_writes_the_same_values(hooked):
    pytest.importorskip("nnsight")
    names = run("nnsight", dict(hooked))
    assert_close("logits", names["traced_logits"], names["changed"])
    g1_BTHE = names["probabilities"]
    assert g1_BTHE.dtype == torch.float32 and torch.allclose(g1_BTHE.sum(-1), torch.ones(1))
    assert names["experts"].shape == (*names["ids"].shape, names["model"].config.hidden_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_nnsight_assigns_takes_effect(hooked, dtype, tmp_path):
    """A key that was not active becomes active: nothing that is known about the old probabilities may stay."""
    pytest.importorskip("nnsight")
    names = {**hooked, "model": hooked["model"].to(dtype), "dtype": dtype}
    path = tmp_path / "assigns.py"
    path.write_text(
        "from nnsight import NNsight\n"
        "def with_key(module, inputs, output):\n"
        "    g1 = output.g1_BTHE.clone(); g1[..., 5] = 0.7\n"
        "    return output._replace(g1_BTHE=g1)\n"
        "handle = model.model.layers[0].router.register_forward_hook(with_key)\n"
        "with torch.no_grad(): wanted = model(ids).logits\n"
        "handle.remove()\n"
        "traced = NNsight(model)\n"
        "with torch.no_grad(), traced.trace(ids):\n"
        "    router = traced.model.layers[0].router\n"
        "    router.output = with_key(None, None, router.output)\n"
        "    found = traced.lm_head.output.save()\n"
    )
    exec(compile(path.read_text(), str(path), "exec"), names)
    hooked["model"].float()
    assert torch.equal(names["found"], names["wanted"])
    assert not torch.equal(names["found"].float(), names["plain"])


def test_transformerlens_reads_and_writes_the_same_values(hooked):
    pytest.importorskip("transformer_lens")
    names = run("TransformerLens", dict(hooked))
    assert_close("logits", names["logits"], names["plain"])
    assert_close("changed logits", names["lens_logits"], names["changed"])
    assert names["g1_BTHE"].shape == (*names["ids"].shape, 4, 64)
    assert names["experts_BTD"].shape == (*names["ids"].shape, 256)
