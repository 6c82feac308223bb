"""Checkpoints have exactly the released tensor names, and every bit is restored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from monet import MonetForCausalLM, MonetModel
from tests.model.tiny import FORMS, states_equal, tiny_config, tiny_model, tokens

KINDS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "grouped queries": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
    "attention biases": {"attention_bias": True},
    "head_dim": {"head_dim": 16},
    "odd number of layers": {"num_hidden_layers": 5, "moe_groups": 3},
}


def released_tensors(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the authors' code writes them."""
    D, V, E, H, M = config.hidden_size, config.vocab_size, config.moe_experts, config.moe_heads, config.moe_dim
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (V, D)
    for index in range(config.num_hidden_layers):
        layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
        for name, (rows, columns) in {"q": (q, D), "k": (kv, D), "v": (kv, D), "o": (D, q)}.items():
            layer[f"self_attn.{name}_proj.weight"] = (rows, columns)
            if config.attention_bias:
                layer[f"self_attn.{name}_proj.bias"] = (rows,)
        if index % config.moe_groups == 0:
            for axis in (1, 2):
                layer[f"router.w{axis}.weight"] = (H * E, D)
                layer[f"router.norm{axis}.running_mean"] = layer[f"router.norm{axis}.running_var"] = (H,)
                layer[f"router.norm{axis}.num_batches_tracked"] = ()
        if config.moe_decompose == "horizontal":
            layer |= {"moe.u.weight": (E * M, D), "moe.u.bias": (E * M,), "moe.v.weight": (D, E * M), "moe.b": (E, D)}
        else:
            P = E * M // 2
            layer |= {f"moe.u{n}.weight": (P, D) for n in (1, 2)} | {f"moe.u{n}.bias": (P,) for n in (1, 2)}
            layer |= {f"moe.v{n}.weight": (D // 2, P) for n in (11, 12, 21, 22)}
            layer |= {"moe.b1": (E, D // 2), "moe.b2": (E, D // 2)}
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_names_and_shapes_are_the_released_ones(tmp_path, form, kind):
    model = tiny_model(form, **KINDS[kind])
    model.save_pretrained(tmp_path)
    tensors = stored(tmp_path)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == released_tensors(model.config)
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_round_trip_is_bitwise(tmp_path, form, kind):
    model = tiny_model(form, **KINDS[kind])
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is MonetForCausalLM and not again.training
    assert not any(info.values()), info
    assert states_equal(again, model)
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_tied_embeddings_are_one_tensor(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for one in (model, again):
        assert one.lm_head.weight is one.model.embed_tokens.weight
    model(tokens(), labels=tokens()).loss.backward()
    assert model.model.embed_tokens.weight.grad is model.lm_head.weight.grad


def test_a_sharded_checkpoint(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == released_tensors(model.config).keys()
    assert states_equal(AutoModelForCausalLM.from_pretrained(tmp_path), model)


def test_the_base_model_alone(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for base in (AutoModel.from_pretrained(tmp_path), MonetModel.from_pretrained(tmp_path)):
        assert type(base) is MonetModel and states_equal(base, model.model)
    base.save_pretrained(tmp_path / "base")
    wanted = {name.removeprefix("model.") for name in released_tensors(model.config)} - {"lm_head.weight"}
    assert stored(tmp_path / "base").keys() == wanted
    assert states_equal(MonetModel.from_pretrained(tmp_path / "base"), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_checkpoint(tmp_path, dtype):
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    tensors = stored(tmp_path)
    assert tensors["model.layers.0.moe.b1"].dtype == dtype
    assert tensors["model.layers.0.router.norm1.running_mean"].dtype == torch.float32
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert states_equal(again, model)
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_half_precision_statistics_of_other_writers_are_taken(tmp_path):
    """The authors' code stores bfloat16 statistics when the model was cast; they are read into float32."""
    from safetensors.torch import save_file

    model = tiny_model()
    model.save_pretrained(tmp_path)
    tensors = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in stored(tmp_path).items()
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    norm = again.model.layers[0].router.norm1
    assert norm.running_mean.dtype == torch.float32
    assert torch.equal(norm.running_mean, model.model.layers[0].router.norm1.running_mean.bfloat16().float())


def test_state_dicts_travel_without_pickle(tmp_path):
    from safetensors.torch import load_model, save_model

    model, other = tiny_model(seed=1), MonetForCausalLM(tiny_config())
    save_model(model, str(tmp_path / "state.safetensors"))
    load_model(other, str(tmp_path / "state.safetensors"))
    assert states_equal(other, model)
    assert other.load_state_dict(tiny_model(seed=2).state_dict(), strict=True)
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())


def test_from_config_and_generation_config(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config())
    assert type(model) is MonetForCausalLM
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.max_new_tokens == 3 and again.generation_config.eos_token_id == 2


def test_the_fingerprint_is_the_models():
    model = tiny_model()
    fingerprint = model.fingerprint()
    assert fingerprint == tiny_model().fingerprint() == model.model.fingerprint()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert tiny_model().to(dtype).fingerprint() == fingerprint
    assert tiny_model(seed=1).fingerprint() != fingerprint
    assert tiny_model(moe_topk=3).fingerprint() != fingerprint
    with torch.no_grad():
        model.routers()[1].w2.weight.neg_()
    assert model.fingerprint() != fingerprint
    model.routers()[1].w2.weight.data.neg_()
    assert model.fingerprint() == fingerprint
    with torch.inference_mode():
        assert tiny_model().fingerprint() == fingerprint
