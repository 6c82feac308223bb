"""What generated text depends on, apart from model and settings: end tokens, generation defaults, the tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Random controls of each mask if outcomes are generated text: the fewest that can show one mask above chance.
GENERATED_CONTROLS = 19


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that turns text into ids and back."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{type(tokenizer).__name__}\n{content}".encode()).hexdigest()


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text, from the model's configuration and its tokenizer, without duplicates."""
    configured = model.config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(int(i) for i in [*listed, tokenizer.eos_token_id] if isinstance(i, int)))


def pad_id(tokenizer: PreTrainedTokenizerBase, ends: list[int]) -> int:
    """The id to pad with: the tokenizer's pad id, or else the first id that ends a text, or else 0."""
    pad = tokenizer.pad_token_id
    return int(pad) if isinstance(pad, int) else ends[0] if ends else 0


@contextlib.contextmanager
def without_defaults(model: Any) -> Iterator[Any]:
    """The model with a `generate` that applies only the given settings.

    Without this, `generate` also applies settings of the checkpoint's generation_config.json, such as penalties.
    """
    from transformers import GenerationConfig

    free: Any = model
    own, free.generation_config = free.generation_config, GenerationConfig()
    try:
        yield free
    finally:
        free.generation_config = own
