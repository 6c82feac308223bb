"""Monet as the text model of another model: transformers' Llava with a CLIP tower."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from monet import ExpertMask, MonetConfig, MonetForCausalLM
from monet.errors import CheckpointError, ConfigError
from tests.model.tiny import FORMS, fill, states_equal, tiny_config, tokens
from tests.tolerances import assert_close

IMAGE, PATCHES = 60, 16  # the image token's id; tokens an image takes


def llava_config(form: str = "vertical", **changes) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, projection_dim=16, num_attention_heads=2, num_hidden_layers=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = tiny_config(form, **changes)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=PATCHES)


@pytest.fixture(params=FORMS)
def llava(request) -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration(llava_config(request.param))
    for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
        fill(part)
    return model.eval()


def inputs() -> dict[str, Tensor]:
    ids = tokens(2, 9).clamp(max=IMAGE - 1)
    images = torch.full((2, PATCHES), IMAGE)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"input_ids": torch.cat([ids[:, :2], images, ids[:, 2:]], dim=1), "pixel_values": pixels}


def test_the_configuration_prints_saves_and_reloads(tmp_path):
    changes = {"pad_token_id": 5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "moe_topk": 3}
    config = llava_config(**changes)
    config.text_config.architectures = ["MonetForCausalLM"]
    assert '"moe_experts": 6' in repr(config)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is LlavaConfig and type(again.text_config) is MonetConfig
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert again.text_config.rope_parameters == config.text_config.rope_parameters
    assert LlavaConfig.from_dict(config.to_dict()).text_config.to_dict() == config.text_config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()


def test_every_stated_key_is_written(tmp_path):
    """No class default may replace a key, so the nested configuration is written in full."""
    config = llava_config()
    stated = {key for key in config.text_config.to_dict() if key != "transformers_version"}
    assert config.to_diff_dict()["text_config"].keys() >= stated


def test_a_configuration_without_values_is_only_for_comparison():
    empty = MonetConfig()
    assert dict(empty.to_dict()) == {}
    with pytest.raises(ConfigError, match="vocab_size is missing"):
        _ = empty.vocab_size
    with pytest.raises(TypeError, match="PreTrainedConfig"):
        MonetForCausalLM(empty)


def test_save_and_load(llava, tmp_path):
    llava.save_pretrained(tmp_path)
    for load in (LlavaForConditionalGeneration, AutoModelForImageTextToText):
        again = load.from_pretrained(tmp_path)
        assert states_equal(again, llava)
        assert torch.equal(again(**inputs()).logits, llava(**inputs()).logits)


def test_the_picture_and_the_text_reach_the_logits(llava):
    given = inputs()
    logits = llava(**given).logits
    assert logits.shape == (2, 25, 61) and torch.isfinite(logits).all()
    other = llava(**given | {"pixel_values": given["pixel_values"].flip(0)}).logits
    assert not torch.equal(other[:, -1], logits[:, -1])
    text = tokens(2, 9).clamp(max=IMAGE - 1)
    language = MonetForCausalLM(llava.config.text_config).eval()
    language.model.load_state_dict(llava.model.language_model.state_dict())
    language.lm_head.load_state_dict(llava.lm_head.state_dict())
    assert_close("logits", llava(input_ids=text).logits, language(text).logits)


@pytest.mark.parametrize("with_picture", [True, False])
def test_cached_generation_is_uncached_generation(llava, with_picture):
    given = inputs() if with_picture else {"input_ids": tokens(2, 9).clamp(max=IMAGE - 1)}
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "suppress_tokens": [IMAGE]}
    cached, uncached = (llava.generate(**given, use_cache=use, **settings) for use in (True, False))
    assert cached.shape[1] == given["input_ids"].shape[1] + 12 and torch.equal(cached, uncached)


def test_a_stored_mask_is_missed_after_loading_and_can_be_stored_again(llava, tmp_path):
    language = llava.model.language_model
    mask = ExpertMask.random(language.config, 20, seed=1, fingerprint=language.fingerprint())
    language.set_expert_mask(mask)
    llava.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="call set_expert_mask of this part"):
        again(**inputs())
    again.model.language_model.set_expert_mask(mask)
    assert torch.equal(again(**inputs()).logits, llava(**inputs()).logits)
    with pytest.raises(ValueError, match="expert_mask"):  # transformers itself refuses
        llava.generate(**inputs(), expert_mask=mask)
    with mask.applied_to(llava):
        assert torch.equal(llava(**inputs()).logits, again(**inputs()).logits)


def test_masks_act(llava):
    language = llava.model.language_model
    mask = ExpertMask.random(llava.config.text_config, 20, seed=1, fingerprint=language.fingerprint())
    plain = llava(**inputs()).logits
    with mask.applied_to(language):
        masked = llava(**inputs()).logits
    assert not torch.allclose(masked, plain)
    assert torch.equal(llava(**inputs(), expert_mask=mask).logits, masked)
