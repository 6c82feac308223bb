"""int8 weights: the output projections are called as modules, and masks stay tied to the model."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from monet import ExpertMask, MonetForCausalLM
from monet.errors import CheckpointError
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import relative_rms

torchao = pytest.importorskip("torchao", reason="quantisation needs torchao")


def model_of(form: str) -> MonetForCausalLM:
    return tiny_model(form, hidden_size=32, moe_dim=8, moe_experts=8)


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


def quantised(model):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def dequantised(model: MonetForCausalLM, form: str) -> MonetForCausalLM:
    """A plain model with the dequantised weights of the quantised model."""
    plain = model_of(form)
    for ours, theirs in zip(plain.modules(), model.modules(), strict=True):
        if isinstance(ours, nn.Linear) and hasattr(theirs.weight, "__tensor_flatten__"):
            ours.weight.data = theirs.weight.dequantize()
    return plain


@pytest.mark.parametrize("form", FORMS)
def test_torchao_int8(form):
    model = quantised(model_of(form))
    plain = dequantised(model, form)
    assert not torch.equal(
        plain.model.layers[0].moe.output_modules()[0].weight,
        model_of(form).model.layers[0].moe.output_modules()[0].weight,
    )
    assert relative_rms(logits(model), logits(plain)) < 1e-4
    mask = ExpertMask.random(model.config, 20, seed=0)
    with torch.no_grad():
        assert relative_rms(model(tokens(), expert_mask=mask).logits, plain(tokens(), expert_mask=mask).logits) < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_dynamic_int8(form):
    """Each linear's input is also rounded, to 8 bits for a whole tensor, which costs a tiny model much accuracy."""
    model = model_of(form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert type(dynamic.model.layers[0].moe.output_modules()[0]) is not nn.Linear
    assert relative_rms(logits(dynamic), logits(model)) < 0.5


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_loading_in_int8(tmp_path, form, masked):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    model = model_of(form)
    mask = ExpertMask.random(model.config, 20, seed=0)
    mask.save(tmp_path / "mask.safetensors", model=model)
    if masked:
        model.set_expert_mask(mask)
    model.save_pretrained(tmp_path / "model")
    loaded = MonetForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), device_map="cpu"
    ).eval()
    assert hasattr(loaded.model.layers[0].moe.output_modules()[0].weight, "__tensor_flatten__")
    assert relative_rms(logits(loaded), logits(model)) < 0.2
    assert (loaded.expert_mask == mask) == masked
    assert loaded.fingerprint() == model.fingerprint(), "computed from the files"
    assert ExpertMask.load(tmp_path / "mask.safetensors", model=loaded) == mask


def test_the_fingerprint_of_weights_quantised_in_memory():
    known, unknown = model_of("vertical"), model_of("vertical")
    mark = known.fingerprint()
    assert quantised(known).fingerprint() == mark
    with pytest.raises(CheckpointError, match=r"call model.fingerprint\(\) before quantising"):
        quantised(unknown).fingerprint()
    known.requires_grad_(False).train()
    assert known.fingerprint() == mark, "frozen weights do not change"
    known.model.norm.weight.requires_grad_(True)
    known.train()
    with pytest.raises(CheckpointError, match="no fingerprint"):
        known.fingerprint()
