"""Configurations of the paper's models, and the name of the paper's model with a given shape."""

from __future__ import annotations

from transformers import LlamaConfig

from monet.configuration_monet import MonetConfig

# Table 6: width, layers, attention heads; there are half as many routing heads as attention heads, and an expert's
# width is width / 128.
SIZES: dict[str, tuple[int, int, int]] = {"850M": (1536, 24, 12), "1.4B": (2048, 24, 16), "4.1B": (3072, 32, 24)}
FORMS = {"HD": "horizontal", "VD": "vertical"}


def paper_config(size: str = "1.4B", form: str = "VD", groups: int = 4) -> MonetConfig:
    """Configuration of a released size; `groups` layers share a router."""
    width, layers, heads = SIZES[size]
    return MonetConfig(
        vocab_size=32000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        moe_heads=heads // 2, moe_dim=width // 128, moe_experts=512, moe_topk=8, moe_groups=groups,
        moe_decompose=FORMS[form], max_position_embeddings=2048,
    )  # fmt: skip


def dense_config() -> LlamaConfig:
    """The dense model of Table 8, whose 1.345 billion parameters determine the width of its MLPs."""
    width, layers, heads = SIZES["1.4B"]
    return LlamaConfig(
        vocab_size=32000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=5504, tie_word_embeddings=False,
    )  # fmt: skip


def name_of(config: MonetConfig) -> str | None:
    """The paper's model of this shape, such as "Monet-VD 1.4B"; None if there is none."""
    keys = ("hidden_size", "num_hidden_layers", "moe_heads", "moe_dim", "moe_experts", "moe_groups", "moe_decompose")
    for size in SIZES:
        for form in FORMS:
            paper = paper_config(size, form)
            if all(getattr(paper, key) == getattr(config, key) for key in keys):
                return f"Monet-{form} {size}"
    return None
