"""What generated text depends on, apart from the model: checked settings, end tokens, defaults, the tokenizer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from monet.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Random controls of each mask if outcomes are generated text: the fewest that can show one mask above chance.
GENERATED_CONTROLS = 19


def check_draws(temperature: float, top_p: float, seed: int) -> None:
    """Check the settings that every suite has that draws tokens.

    Args:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: share of the probability that the tokens hold which may be drawn.
        seed: seed of the draws.
    Raises:
        ConfigError: a value is out of range.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature must be a number of 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be in (0, 1], got {top_p}")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}")


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
