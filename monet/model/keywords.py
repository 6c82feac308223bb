"""The keywords that the model classes accept beyond their signatures, by name. All others are refused.

A misspelt keyword must not be ignored: `expert_masks=...` would run the unmasked model.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from inspect import signature
from typing import Any, TypedDict

from torch import Tensor


class AttentionKeywords(TypedDict, total=False):
    """Keywords that transformers' attention functions read.

    cu_seq_lens_q, cu_seq_lens_k: (documents + 1,) int32, the start of each packed document, and the end.
    max_length_q, max_length_k: tokens of the longest document.
    is_causal: False lets every token attend to all tokens.
    seq_idx: document number of each token, from transformers' flattening collator; attention reads the lengths instead.
    read_index, write_index, block_table, logits_indices, logits_processor_args, max_seqlen_q, max_seqlen_k: used by
        continuous batching; the last two have these names in older releases.
    output_attentions: return attention weights, with `attn_implementation="eager"`.
    output_hidden_states: return the states before every layer and after the last norm.
    """

    cu_seq_lens_q: Tensor
    cu_seq_lens_k: Tensor
    max_length_q: int
    max_length_k: int
    is_causal: bool
    seq_idx: Tensor
    read_index: Any
    write_index: Any
    block_table: Tensor | None
    logits_indices: Tensor
    logits_processor_args: Any
    max_seqlen_q: int
    max_seqlen_k: Any
    output_attentions: bool
    output_hidden_states: bool | int | list[int]


class LanguageModelKeywords(AttentionKeywords, total=False):
    """The attention keywords, and further keywords of `MonetForCausalLM`.

    shift_labels: (B, T) int64, already shifted: shift_labels[t] is the token that position t must predict. It is not in
        the signature because transformers' Trainer treats each argument with "label" in its name as a required column.
    """

    shift_labels: Tensor | None


def refuse_unknown(given: Iterable[str], keywords: type, forward: Any) -> None:
    """Raise unless all keywords are known.

    Args:
        given: names of the keywords beyond the signature.
        keywords: the TypedDict that lists the accepted keywords.
        forward: the method that was called; its own arguments are suggested as corrections too.
    Raises:
        TypeError: a keyword is unknown; the message names it and the known keyword with the most similar spelling.
    """
    allowed: Any = keywords.__dict__["__optional_keys__"]
    for name in given:
        if name not in allowed:
            known = [*allowed, *list(signature(forward).parameters)[1:-1], "return_dict"]
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(sorted(known))}"
            raise TypeError(f"{forward.__qualname__} got an unknown keyword {name!r}; {hint}")
