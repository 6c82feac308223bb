"""Parameters and operations computed from a configuration equal those of the built model, and the paper's figures."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from monet import MonetConfig, MonetForCausalLM
from monet.costs.flops import forward_flops_per_token, parameter_counts, training_flops_per_token
from monet.costs.hardware import ACCELERATORS, accelerator_of, peak_flops
from tests.model.tiny import FORMS, tiny_config

# name: width, layers, attention heads, routing heads, width of an expert, width of the dense twin
RELEASED = {
    "850M": (1536, 24, 12, 6, 12, 4096),
    "1.4B": (2048, 24, 16, 8, 16, 5504),
    "4.1B": (3072, 32, 24, 12, 24, 8192),
}


def monet(name: str, form: str, **changes) -> MonetConfig:
    D, L, heads, H, M, _ = RELEASED[name]
    sizes = {"vocab_size": 32000, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": heads,
             "moe_heads": H, "moe_dim": M, "moe_experts": 512, "moe_topk": 8, "moe_groups": 4}  # fmt: skip
    return MonetConfig(**{**sizes, "moe_decompose": form, **changes})


def llama(name: str, **changes) -> LlamaConfig:
    D, L, heads, _, _, width = RELEASED[name]
    sizes = {"vocab_size": 32000, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": heads,
             "intermediate_size": width, "tie_word_embeddings": False}  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def built_parameters(config: LlamaConfig) -> int:
    with torch.device("meta"):
        model = MonetForCausalLM(config) if isinstance(config, MonetConfig) else LlamaForCausalLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("form", [*FORMS, "dense"])
def test_parameters_are_the_built_models(name, form):
    config = llama(name) if form == "dense" else monet(name, form)
    assert sum(parameter_counts(config).values()) == built_parameters(config)


ODD = [
    tiny_config("vertical", num_hidden_layers=5, num_key_value_heads=1, tie_word_embeddings=True),
    tiny_config("horizontal", num_hidden_layers=3, attention_bias=True, head_dim=6, moe_groups=1),
    LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    ),
    tiny_config("vertical", num_hidden_layers=5, dense_layers=[0, 2], intermediate_size=40),
]  # fmt: skip


@pytest.mark.parametrize("config", ODD, ids=["incomplete group", "own head width", "dense with biases", "hybrid"])
def test_parameters_of_unusual_shapes(config):
    assert sum(parameter_counts(config).values()) == built_parameters(config)


def test_each_part_is_what_the_model_holds_under_its_names():
    config = monet("850M", "vertical")
    with torch.device("meta"):
        model = MonetForCausalLM(config)
    words = {"embedding": "embed_tokens", "attention": "self_attn", "norms": "norm.", "routers": ".router.",
             "experts": ".moe.", "lm_head": "lm_head"}  # fmt: skip
    for part, count in parameter_counts(config).items():
        held = sum(
            p.numel() for name, p in model.named_parameters() if words[part] in name.replace("layernorm", "norm")
        )
        assert held == count, part


@pytest.mark.parametrize("form", FORMS)
def test_the_papers_operations(form):
    """Table 8: TFLOP of a forward over 2M tokens, with attention over the whole square. A few tenths of a percent
    belong to operations that are not counted here."""
    totals = []
    for config in (monet("1.4B", form), llama("1.4B")):
        parts = forward_flops_per_token(config, 2048)
        totals.append((sum(parts.values()) + parts["attention_scores"]) * 2**21 / 1e12)
    assert totals == pytest.approx([6745.30, 6225.52], rel=0.003)
    assert sum(parameter_counts(llama("1.4B")).values()) == pytest.approx(1.345e9, rel=0.001)
    assert totals[0] / totals[1] == pytest.approx(6745.30 / 6225.52, rel=0.001)


def test_the_papers_ungrouped_routing():
    config = monet("1.4B", "vertical", moe_groups=1)
    assert sum(parameter_counts(config).values()) == pytest.approx(1.767e9, rel=0.001)
    parts = forward_flops_per_token(config, 2048)
    total = (sum(parts.values()) + parts["attention_scores"]) * 2**21 / 1e12
    assert total == pytest.approx(8017.81, rel=0.004)


@pytest.mark.parametrize("form", [*FORMS, "dense", "hybrid"])
def test_operations_are_those_torch_counts(form):
    """torch counts the products of a real forward, with attention over the whole square. It does not count the biases
    of products, or mixing with few operations."""
    T, sizes = 8, {"num_hidden_layers": 4, "hidden_size": 24}
    if form == "dense":
        config = LlamaConfig(vocab_size=61, num_attention_heads=2, intermediate_size=40, **sizes)
        model = LlamaForCausalLM(config)
    elif form == "hybrid":
        config = tiny_config("vertical", **sizes, dense_layers=[0, 3], intermediate_size=40)
        model = MonetForCausalLM(config).train()
    else:
        config = tiny_config(form, **sizes)
        model = MonetForCausalLM(config).train()
    model.set_attn_implementation("eager")
    ids = torch.zeros(1, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    parts = forward_flops_per_token(config, T)
    expected = (sum(parts.values()) + parts["attention_scores"]) * T
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_training_is_three_forwards_and_recomputing_another_of_the_layers():
    config = monet("850M", "vertical")
    parts = forward_flops_per_token(config, 2048)
    forward = sum(parts.values())
    assert training_flops_per_token(config, 2048) == 3 * forward
    recomputed = training_flops_per_token(config, 2048, recompute=True)
    assert recomputed == 4 * forward - parts["lm_head"]


@pytest.mark.parametrize("dense", [(0, 1, 2), (0, 1, 4), ()], ids=["top", "between", "all"])
def test_frozen_dense_weights_cost_less(dense):
    """torch counts the products of a real forward and backward in which only routers and experts learn."""
    T, sizes = 8, {"num_hidden_layers": 6, "hidden_size": 24}
    config = tiny_config("vertical", **sizes, dense_layers=list(dense), intermediate_size=80)
    model = MonetForCausalLM(config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".router." in name or ".moe." in name)
    model.set_attn_implementation("eager")
    ids = torch.zeros(1, T, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    squares = forward_flops_per_token(config, T)["attention_scores"]  # torch counts the masked half too
    above = config.num_hidden_layers - config.monet_layers[0] - 1
    expected = training_flops_per_token(config, T, freeze_dense=True) + squares + 2 * squares * above / 6
    assert counter.get_total_flops() == pytest.approx(expected * T, rel=0.06)
    assert training_flops_per_token(config, T, freeze_dense=True) < training_flops_per_token(config, T)


@pytest.mark.parametrize(
    ("device_name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_devices_are_known_by_torchs_name(device_name, kind):
    assert accelerator_of(device_name) is (None if kind is None else ACCELERATORS[kind])


def test_no_peak_is_claimed_for_a_cpu():
    assert peak_flops(torch.device("cpu")) is None
