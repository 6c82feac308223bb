"""Weights that accelerate keeps on the CPU or on disk give the same numbers, fingerprints and masks."""

from __future__ import annotations

import pytest
import torch

from monet import ExpertMask, MonetForCausalLM
from tests.model.tiny import FORMS, tiny_model, tokens

accelerate = pytest.importorskip("accelerate", reason="offloading needs accelerate")


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("form", FORMS)
def test_offloaded_weights(tmp_path, form, place):
    model = tiny_model(form)
    wanted, mark = logits(model), model.fingerprint()
    if place == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert all(weight.is_meta for weight in model.model.layers[0].moe.parameters())
    assert torch.equal(logits(model), wanted)
    assert model.fingerprint() == mark
    assert torch.equal(model.generate(tokens(), max_new_tokens=4, do_sample=False)[:, :9], tokens())


@pytest.mark.parametrize("form", FORMS)
def test_loading_to_the_disk_with_a_stored_mask(tmp_path, form):
    model = tiny_model(form)
    model.set_expert_mask(ExpertMask.random(model.config, 30, seed=0))
    wanted = logits(model)
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{n}": "disk" if n else "cpu" for n in range(4)}
    loaded = MonetForCausalLM.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "off")
    assert (
        loaded.model.layers[1].moe.u1.weight.is_meta
        if form == "vertical"
        else loaded.model.layers[1].moe.u.weight.is_meta
    )
    assert loaded.expert_mask == model.expert_mask
    assert torch.equal(logits(loaded.eval()), wanted)
