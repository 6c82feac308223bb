"""The only imports of transformers' Llama internals, so that a change there affects only this file."""

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from monet.configuration_monet import MonetConfig
from monet.model.float32_buffers import Float32Buffers

__all__ = ["DenseMLP", "LlamaAttention", "LlamaRMSNorm", "RotaryEmbedding"]


class DenseMLP(nn.Module):
    """The gated MLP of a hybrid's dense layer: (B, T, D) -> (B, T, D), with LLaMA's parameter names and no bias."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.dense_act]

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class RotaryEmbedding(Float32Buffers, LlamaRotaryEmbedding):
    """Llama's rotary embedding whose frequencies stay float32 after a cast, as they do after loading in that dtype."""
