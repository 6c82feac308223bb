"""The record of a result about its model: equal for models of several seeds, different for another shape."""

import json

import torch

from monet import MonetForCausalLM
from monet.eval.ablation.measure import ablate
from monet.eval.core.controls import Controls
from monet.eval.core.model_origin import ModelOrigin, Training, origin_of
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import config

EXPORTED = {"seed": 3, "data_seed": 0, "step": 40, "data_fingerprint": "ab" * 32, "dtype": "float32"}


def saved(folder, provenance=None, **changes) -> MonetForCausalLM:
    MonetForCausalLM(config(**changes)).save_pretrained(folder)
    if provenance is not None:
        (folder / "provenance.json").write_text(provenance)
    return MonetForCausalLM.from_pretrained(folder).eval()


def test_weights_and_place_do_not_matter_and_the_shape_does(tmp_path, llama):
    first, second = (origin_of(saved(tmp_path / name)) for name in ("a", "b"))
    assert first == second == ModelOrigin("Monet", first.config_digest, Training())
    assert origin_of(saved(tmp_path / "c", moe_dim=8)).config_digest != first.config_digest
    assert origin_of(saved(tmp_path / "d").to(torch.bfloat16)) == first
    assert origin_of(llama).architecture == "Llama"


def test_seeds_are_those_that_the_export_recorded(tmp_path):
    assert origin_of(saved(tmp_path / "a", json.dumps(EXPORTED))).training == Training(3, 0, 40, "ab" * 32)
    for number, foreign in enumerate(["{", "[]", '{"seed": "three"}']):
        assert origin_of(saved(tmp_path / f"foreign{number}", foreign)).training == Training()


def test_a_result_records_it(tmp_path, random_data):
    model = saved(tmp_path / "model", json.dumps(EXPORTED))
    mask = ExpertMask.random(model.config, [3, 3], seed=0)
    result = ablate(model, {"left": mask}, random_data, out=tmp_path / "out", controls=Controls(2), progress=False)
    assert result is not None
    assert result.provenance["model_origin"]["training"]["seed"] == 3
    assert result.provenance["model_origin"]["architecture"] == "Monet"
