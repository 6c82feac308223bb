"""The only imports of transformers' Llama internals, so that a change there is met in one place."""

from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from monet.model.float32_buffers import Float32Buffers

__all__ = ["LlamaAttention", "LlamaRMSNorm", "RotaryEmbedding"]


class RotaryEmbedding(Float32Buffers, LlamaRotaryEmbedding):
    """Llama's rotary embedding with frequencies in float32 also after a cast, as after loading in that dtype."""
