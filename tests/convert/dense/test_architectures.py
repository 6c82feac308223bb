"""Which dense models are accepted, and the configuration and weights of the hybrid."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPT2Config, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from monet import MonetForCausalLM
from monet.convert.dense.architectures import ExpertShape, hybrid_config, kept_weights
from monet.errors import CheckpointError, ConfigError
from monet.model.dense_models import load_dense, read_dense_config, weights_digest
from tests.convert.dense.conftest import llama_config, randomise

SHAPE = ExpertShape("vertical", 8, 24, 2, 3, 1)
SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def saved(folder, config) -> str:
    config.save_pretrained(folder)
    return str(folder)


def test_other_architectures_are_refused_by_name_with_the_accepted_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'gpt2' is not supported; use llama, mistral .* qwen2"):
        read_dense_config(saved(tmp_path, GPT2Config()))


def test_an_unknown_architecture_with_its_own_code_is_refused(tmp_path):
    content = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the folder ran')")
    with pytest.raises(ConfigError, match="'mine' is not supported"):
        read_dense_config(str(tmp_path))


def test_a_sliding_window_below_the_context_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="sliding_window 64 below max_position_embeddings 128"):
        read_dense_config(saved(tmp_path, MistralConfig(**SIZES, sliding_window=64)))
    assert read_dense_config(saved(tmp_path, MistralConfig(**SIZES, sliding_window=128))).model_type == "mistral"
    assert read_dense_config(saved(tmp_path, MistralConfig(**SIZES, sliding_window=None))).model_type == "mistral"
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=2)
    with pytest.raises(ConfigError, match="sliding_window 64"):
        read_dense_config(saved(tmp_path, config))
    assert read_dense_config(saved(tmp_path, Qwen2Config(**SIZES, sliding_window=64))).model_type == "qwen2"


def test_biases_in_the_mlp_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="mlp_bias"):
        read_dense_config(saved(tmp_path, llama_config(mlp_bias=True)))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no readable config"):
        read_dense_config(str(tmp_path / "nothing"))


def test_pickled_weights_are_never_read(tmp_path):
    model = LlamaForCausalLM(llama_config())
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_dense(str(tmp_path))


def test_the_configuration_keeps_all_that_attention_depends_on():
    rope = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    dense = llama_config(head_dim=16, rms_norm_eps=1e-6, rope_parameters=rope)
    config = hybrid_config(dense, [2, 3], SHAPE)
    assert (config.head_dim, config.num_key_value_heads, config.rms_norm_eps) == (16, 2, 1e-6)
    assert config.rope_parameters == rope
    assert (config.moe_dim, config.moe_experts, config.hidden_act) == (24, 8, "relu2")
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (1, 2, True)


def test_all_weights_but_the_replaced_mlps_are_kept():
    model = LlamaForCausalLM(llama_config())
    weights = kept_weights(model, [1, 3])
    dropped = model.state_dict().keys() - weights.keys()
    assert {name.split(".")[2] for name in dropped} == {"1", "3"} and len(dropped) == 6
    assert all(".mlp." in name for name in dropped)


def test_qwen2_gets_output_biases_of_zero():
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    weights = kept_weights(model, [3])
    assert torch.equal(weights["model.layers.0.self_attn.o_proj.bias"], torch.zeros(32))
    assert hybrid_config(model.config, [3], SHAPE).attention_bias


def test_a_changed_weight_changes_the_weights_digest():
    model = LlamaForCausalLM(llama_config())
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-3
    assert weights_digest(model) != before


@pytest.mark.parametrize("kind", ["llama", "llama with biases", "mistral", "qwen2"])
def test_the_layers_below_the_first_converted_one_compute_what_the_dense_model_computes(tmp_path, kind):
    configs = {
        "llama": (LlamaForCausalLM, llama_config(head_dim=12)),
        "llama with biases": (LlamaForCausalLM, llama_config(attention_bias=True, tie_word_embeddings=False)),
        "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None, head_dim=16)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, rope_theta=7000.0)),
    }
    made, config = configs[kind]
    model = made(config)
    randomise(model)
    model.save_pretrained(tmp_path)
    dense = load_dense(str(tmp_path))
    hybrid = MonetForCausalLM(hybrid_config(dense.config, [3], SHAPE)).eval()
    missing, superfluous = hybrid.load_state_dict(kept_weights(dense, [3]), strict=False)
    assert not superfluous and all(name.startswith(("model.layers.3.moe", "model.layers.3.router")) for name in missing)
    seen: list[torch.Tensor] = []
    for one in (dense, hybrid):
        one.model.layers[3].post_attention_layernorm.register_forward_hook(lambda *found: seen.append(found[2]))
        with torch.no_grad():
            one(input_ids=torch.arange(3, 40)[None])
    assert torch.equal(seen[0], seen[1])
