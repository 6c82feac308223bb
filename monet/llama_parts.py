"""The only imports of transformers' Llama internals, so that a change there is met in one place."""

from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

__all__ = ["LlamaAttention", "LlamaRMSNorm", "LlamaRotaryEmbedding"]
