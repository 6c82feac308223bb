"""Small dense models as teachers, and hybrids that learn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from monet import MonetForCausalLM
from monet.model.modeling_monet import MonetConfig
from tests.training.runs import SHAPE

HYBRID = {**SHAPE, "num_hidden_layers": 4, "dense_layers": [0, 2], "intermediate_size": 48, "attention_dropout": 0.0,
          "rms_norm_eps": 1e-6}  # fmt: skip


def dense(kind: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[kind]
    config = getattr(transformers, f"{name}Config")(
        vocab_size=300, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-6,
        **({"sliding_window": None} if kind == "mistral" else {}), initializer_range=0.2,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def hybrid_of(model: Any) -> MonetForCausalLM:
    """A hybrid with random experts, and all other weights of a dense LLaMA."""
    torch.manual_seed(5)
    hybrid = MonetForCausalLM(MonetConfig(**HYBRID, initializer_range=0.2))
    known = model.state_dict()
    hybrid.load_state_dict({name: known.get(name, tensor) for name, tensor in hybrid.state_dict().items()})
    return hybrid


def learning_hybrid(folder: Path) -> dict[str, Any]:
    """Write a LLaMA and a hybrid with its layers to folder/teacher and folder/hybrid; return settings of `model`."""
    model = dense()
    model.save_pretrained(folder / "teacher")
    hybrid_of(model).save_pretrained(folder / "hybrid")
    return {
        "shape": HYBRID, "init_from": str(folder / "hybrid"), "freeze_dense": True,
        "teacher": {"model": str(folder / "teacher")},
    }  # fmt: skip
