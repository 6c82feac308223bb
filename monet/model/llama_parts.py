"""The only imports of transformers' Llama internals, so that a change there affects only this file."""

from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from monet.model.float32_buffers import Float32Buffers

__all__ = ["LlamaAttention", "LlamaRMSNorm", "RotaryEmbedding"]


class RotaryEmbedding(Float32Buffers, LlamaRotaryEmbedding):
    """Llama's rotary embedding whose frequencies stay float32 after a cast, as they do after loading in that dtype."""
