"""config.json has exactly the released keys, and all written values are read back."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from monet import MonetConfig, MonetForCausalLM
from monet.configuration_monet import REQUIRED_KEYS_OF_FILES
from tests.model.tiny import FORMS, tiny_config, tiny_model, tokens

RELEASED_KEYS = {
    "architectures", "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act",
    "hidden_size", "initializer_range", "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type",
    "moe_decompose", "moe_dim", "moe_experts", "moe_groups", "moe_heads", "moe_topk", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "output_router_probs", "pretraining_tp", "rms_norm_eps", "rope_scaling",
    "rope_theta", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache", "vocab_size",
}  # fmt: skip

ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "linear, old spelling": {"type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0},
}  # fmt: skip


def written(model: MonetForCausalLM, folder: Path) -> dict:
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", FORMS)
def test_the_keys_are_the_released_ones(tmp_path, form):
    keys = written(MonetForCausalLM(tiny_config(form, pad_token_id=None)), tmp_path)
    assert keys.keys() == RELEASED_KEYS
    assert keys["model_type"] == "monet" and keys["architectures"] == ["MonetForCausalLM"]
    assert keys["moe_decompose"] == form
    assert keys["rope_theta"] == 10000.0 and type(keys["rope_theta"]) is float
    assert keys["rope_scaling"] is None and keys["intermediate_size"] is None and keys["mlp_bias"] is None
    assert keys["torch_dtype"] == "float32" and keys["head_dim"] == 12 and keys["num_key_value_heads"] == 2


def test_a_padding_token_is_written_where_there_is_one(tmp_path):
    keys = written(MonetForCausalLM(tiny_config()), tmp_path)
    assert keys.keys() == RELEASED_KEYS | {"pad_token_id"} and keys["pad_token_id"] == 0


def test_the_dtype_is_written_and_followed(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    assert written(model, tmp_path)["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ROPE)
def test_rope_scaling_survives(tmp_path, kind):
    model = tiny_model(rope_scaling=dict(ROPE[kind]), rope_theta=5000.0)
    keys = written(model, tmp_path)
    assert keys["rope_theta"] == 5000.0 and "rope_parameters" not in keys and "rope_theta" not in keys["rope_scaling"]
    wanted = {"rope_type": ROPE[kind].get("type"), **ROPE[kind]}
    assert keys["rope_scaling"].items() >= {key: value for key, value in wanted.items() if value is not None}.items()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    assert again.config.to_dict()["rope_scaling"] == keys["rope_scaling"]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "hidden_act": "silu", "num_key_value_heads": 1, "head_dim": 20},
        {"moe_decompose": "horizontal", "moe_dim": 3, "hidden_size": 20},
        {"output_router_probs": True, "tie_word_embeddings": True, "use_cache": False, "rope_theta": 500000.0},
        {"rms_norm_eps": 1e-6, "attention_dropout": 0.1, "initializer_range": 0.01, "eos_token_id": [2, 3]},
        {"moe_groups": 8, "num_hidden_layers": 3, "moe_topk": 6, "vocab_size": 99, "max_position_embeddings": 4096},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_value_is_read_back(tmp_path, changes):
    config = tiny_config(**changes)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is MonetConfig
    for key, value in changes.items():
        got = again.rope_parameters["rope_theta"] if key == "rope_theta" else getattr(again, key)
        assert got == value, key
    assert {**again.to_dict(), "transformers_version": None} == {**config.to_dict(), "transformers_version": None}
    assert MonetConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert MonetConfig.from_json_file(tmp_path / "config.json").to_dict() == again.to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_topk": 3},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5000.0},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "rope_theta": 5000.0},
    ],
    ids=str,
)
def test_overrides_at_loading(tmp_path, changes):
    """A longer context or another threshold gives the same model as building with these values."""
    tiny_model(max_position_embeddings=16).save_pretrained(tmp_path)
    wanted = tiny_model(max_position_embeddings=16, **copy.deepcopy(changes))
    for load in (AutoModelForCausalLM.from_pretrained, MonetForCausalLM.from_pretrained):
        got = load(tmp_path, **copy.deepcopy(changes))
        assert got.config.rope_parameters == wanted.config.rope_parameters
        assert got.config.moe_topk == wanted.config.moe_topk
        assert torch.equal(got(tokens(1, 30)).logits, wanted(tokens(1, 30)).logits)


def test_a_released_file_is_accepted(tmp_path):
    """The released files have null for unused keys, rope_theta at top level, and keys of an older transformers."""
    keys = {**tiny_config().to_dict(), "transformers_version": "4.47.1", "torch_dtype": "bfloat16", "moe_topk": 1}
    keys |= {"architectures": ["MonetForCausalLM"], "auto_map": {"AutoConfig": "configuration_monet.MonetConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert config.moe_topk == 1 and config.intermediate_size is None and config.mlp_bias is None


def test_older_files_may_lack_what_other_keys_tell():
    keys = tiny_config().to_dict()
    for key in ("head_dim", "num_key_value_heads", "transformers_version", "pretraining_tp", "architectures"):
        keys.pop(key)
    config = MonetConfig.from_dict(keys)
    assert config.head_dim == 12 and config.num_key_value_heads == 2


@pytest.mark.parametrize("key", REQUIRED_KEYS_OF_FILES)
def test_no_default_stands_in_for_a_missing_key(key):
    """The defaults of the authors' class match no release: a file must state these keys, and null does not count."""
    keys = tiny_config().to_dict()
    for absent in (keys | {key: None}, {name: value for name, value in keys.items() if name != key}):
        with pytest.raises(ValueError, match=f"{key} is missing"):
            MonetConfig.from_dict(absent)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        MonetConfig(vocab_size=61, hidden_size=24)
    for key in ("num_hidden_layers", "moe_topk", "moe_decompose"):
        assert f"{key} is missing" in str(caught.value)
    with pytest.raises(ValueError, match=r"moe_dim=0: .*moe_experts=-1: "):
        tiny_config(moe_dim=0, moe_experts=-1)


@pytest.mark.parametrize(
    ("name", "width", "layers", "heads", "total", "experts", "routers"),
    [
        ("850M", 1536, 24, 12, 853.5, 472.0, 56.6),
        ("1.4B", 2048, 24, 16, 1465.2, 830.7, 100.7),
        ("4.1B", 3072, 32, 24, 4173.4, 2466.6, 302.0),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_released_sizes(form, name, width, layers, heads, total, experts, routers):
    config = tiny_config(
        form, vocab_size=32000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        moe_dim=width // 128, moe_heads=heads // 2, moe_experts=512, moe_topk=8, moe_groups=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = MonetForCausalLM(config)
    counts = {"": 0, ".moe.": 0, ".router.": 0}
    for key, parameter in model.named_parameters():
        for part in counts:
            counts[part] += parameter.numel() if part in key else 0
    assert [round(count / 1e6, 1) for count in counts.values()] == [total, experts, routers], name
