"""Small models for evaluation: a random one, and one built by hand, in which each expert serves a known label."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import LlamaConfig

from monet import MonetConfig, MonetForCausalLM
from monet.eval.core.inputs import LabelledSequences
from monet.training.language_models import LlamaForCausalLM

LABELS = ["left", "middle", "right"]
TOKENS_PER_LABEL = 4


# tests/eval/test_hybrid.py sets it: every model then has one more layer, a dense one.
HYBRID = "MONET_TESTS_HYBRID"


def config(**changes) -> MonetConfig:
    keys = {
        "vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_dim": 4,
        "moe_heads": 3, "moe_experts": 5, "moe_topk": 2, "moe_groups": 2, "moe_decompose": "vertical",
        "max_position_embeddings": 32, "bos_token_id": None, "eos_token_id": None,  # all ids are ordinary tokens
    }  # fmt: skip
    keys = {**keys, **changes}
    if os.environ.get(HYBRID):
        keys |= {"num_hidden_layers": keys["num_hidden_layers"] + 1, "dense_layers": [1], "intermediate_size": 20}
    return MonetConfig(**keys)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    shape = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


@pytest.fixture
def random_model() -> MonetForCausalLM:
    torch.manual_seed(1)
    model = MonetForCausalLM(config(initializer_range=0.3)).eval()
    for router in model.routers():
        for norm in (router.norm1, router.norm2):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2.0)
    return model


@pytest.fixture
def random_data() -> LabelledSequences:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, 12, (17,), generator=generator).tolist()
    sequences = [torch.randint(24, (length,), generator=generator).tolist() for length in lengths]
    return LabelledSequences(LABELS, sequences, [number % 3 for number in range(17)])


@pytest.fixture
def planted_model() -> MonetForCausalLM:
    """Label d has the tokens 4d..4d+3. Only they activate expert (d, d), whose bias makes these tokens more likely."""
    model = MonetForCausalLM(
        config(vocab_size=12, num_hidden_layers=1, moe_heads=2, moe_topk=1, moe_experts=16, moe_decompose="horizontal")
    ).eval()
    layer = model.model.layers[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
            norm.weight.fill_(1.0)
        for token in range(12):
            label = token // TOKENS_PER_LABEL
            model.model.embed_tokens.weight[token, [label, 4 + token]] = 1.0
            model.lm_head.weight[token, 4 + token] = 2.0
            layer.moe.b[label, 4 + token] = 3.0
        for axis in (layer.router.w1, layer.router.w2):
            for label in range(3):
                axis.weight.view(2, 16, 16)[:, label, label] = 20.0
    return model


@pytest.fixture
def planted_data() -> LabelledSequences:
    generator = torch.Generator().manual_seed(3)
    label_of = [number % 3 for number in range(30)]
    sequences = [
        (TOKENS_PER_LABEL * label + torch.randint(4, (10,), generator=generator)).tolist() for label in label_of
    ]
    return LabelledSequences(LABELS, sequences, label_of)
