"""One name for the key-value cache: transformers 5.24 renamed `past_key_values` to `cache` everywhere.

Monet's classes accept both names under any release. Calls to transformers and returned outputs use the name of the
installed release: `CACHE_KEYWORD`.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers.cache_utils import Cache

from monet.model.llama_parts import LlamaAttention

CACHE_KEYWORDS = ("cache", "past_key_values")


def _keyword_of_attention() -> str:
    parameters = inspect.signature(LlamaAttention.forward).parameters
    for name in CACHE_KEYWORDS:
        if name in parameters:
            return name
    raise ImportError(
        f"attention in this transformers release takes its cache under none of the names {', '.join(CACHE_KEYWORDS)}; "
        f"its arguments are {', '.join(parameters)}; install a release that Monet was tested with (see monet doctor)"
    )


CACHE_KEYWORD = _keyword_of_attention()


def one_cache(
    cache: Any, past_key_values: Cache | None, keywords: dict[str, Any]
) -> tuple[Cache | None, dict[str, Any]]:
    """The cache given under either name, and the keywords for attention.

    Before 5.24, continuous batching already uses `cache` for its paged cache, which attention then reads itself.

    Raises:
        TypeError: two different caches were given.
    """
    if CACHE_KEYWORD != "cache" and cache is not None and not isinstance(cache, Cache):
        return past_key_values, keywords | {"cache": cache}
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise TypeError("cache and past_key_values are names of the same argument, but two caches were given; pass one")
    return (past_key_values if cache is None else cache), keywords
