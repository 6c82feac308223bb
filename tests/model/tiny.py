"""Models small enough to build in every test; no parameter has a default value that could hide a fault."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from monet import MonetConfig, MonetForCausalLM

FORMS = ("vertical", "horizontal")


def tiny_config(form: str = "vertical", **changes: Any) -> MonetConfig:
    """Four layers, two routers, E = 6; any key can be changed."""
    keys: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "moe_dim": 4,
        "moe_heads": 3,
        "moe_experts": 6,
        "moe_topk": 2,
        "moe_groups": 2,
        "moe_decompose": form,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return MonetConfig(**{**keys, **changes})


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Random values everywhere, biases, norms and running statistics included."""
    generator = torch.Generator().manual_seed(seed)

    def gauss(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            if "num_batches_tracked" in name:
                tensor.fill_(1000)
            elif "running_var" in name:
                tensor.copy_(0.5 + gauss(tensor).abs())
            elif "norm" in name and "running" not in name:
                tensor.copy_(1 + 0.1 * gauss(tensor))
            elif "embed" in name:
                tensor.copy_(gauss(tensor))
            elif "running_mean" in name:
                tensor.copy_(0.3 * gauss(tensor))
            else:
                tensor.copy_(0.25 * gauss(tensor))


def tiny_model(form: str = "vertical", seed: int = 0, **changes: Any) -> MonetForCausalLM:
    """A tiny model in evaluation mode with random values everywhere."""
    model = MonetForCausalLM(tiny_config(form, **changes))
    fill(model, seed)
    return model.eval()


def tokens(B: int = 2, T: int = 9, seed: int = 0) -> Tensor:
    """(B, T) token ids without special tokens."""
    return torch.randint(3, 61, (B, T), generator=torch.Generator().manual_seed(seed))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, after three special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def states_equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two modules have the same tensors under the same names, bitwise, dtypes included."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )
