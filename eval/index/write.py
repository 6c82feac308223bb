"""Write the files of an index from the tables of each group, in a folder that is then published as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import save_file

from monet.eval.index import firing
from monet.eval.index import info as names
from monet.eval.index.arrays import Arrays, contexts_of, counts_of, samples_of, save_arrays, sparse_counts
from monet.eval.index.experts import write_experts
from monet.eval.index.info import IndexInfo
from monet.eval.index.tables import State
from monet.eval.index.text import FlatIds, WindowTexts, write_windows
from monet.eval.index.tokens import TokenTexts


def write_index(
    folder: Path, info: IndexInfo, groups: Iterable[State], windows: list[pa.Table], tokenizer: Any
) -> None:
    """Fill an empty folder with the files of an index.

    Args:
        folder: the folder.
        info: everything in index.json except the files.
        groups: the tables of each group in turn.
        windows: rows of the windows, in any order.
        tokenizer: the model's tokenizer, of which a copy is stored; None if there is none.
    """
    write_windows(folder / names.WINDOWS, windows)
    texts = TokenTexts(tokenizer)
    texts.save(folder / names.TOKENIZER)
    scratch = folder / ".ids"
    flat = WindowTexts(folder / names.WINDOWS).flat_ids(scratch) if info.settings.tokens == "sampled" else None
    contexts: list[Arrays] = []
    samples: list[Arrays] = []
    counts: list[Arrays] = []
    tokens: list[Arrays] = []
    full: Arrays = {}
    for group, state in enumerate(groups):
        contexts.append(contexts_of(state))
        samples.append(samples_of(state))
        counts.append(counts_of(state))
        tokens.append(_firing(state, samples[-1], counts[-1], flat))
        if info.part is not None and flat is None:
            sparse = sparse_counts(state.token_UV.numpy())
            full |= {f"{group}.{name}": array for name, array in sparse.items()}
    scratch.unlink(missing_ok=True)
    count = info.model.groups
    save_arrays(folder / names.TOP, contexts, count)
    save_arrays(folder / names.SAMPLES, samples, count)
    by_label = {"tokens_C": np.array(info.tokens), "windows_C": np.array(info.windows)}
    save_arrays(folder / names.COUNTS, counts, count, by_label)
    save_arrays(folder / names.TOKENS, tokens, count)
    if full:
        save_file(full, folder / names.TOKEN_COUNTS)
    write_experts(folder / names.EXPERTS, info, zip(contexts, counts, tokens, strict=True), texts.text)
    dataclasses.replace(info, files={}).save(folder)


def _firing(state: State, samples: Arrays, counts: Arrays, flat: FlatIds | None) -> Arrays:
    if flat is None:
        return firing.exact(state.token_UV.numpy())
    return firing.sampled(samples, counts["histogram_UY"], flat)


def merged(states: Iterable[Callable[[], State]]) -> State:
    """The tables of a group over several parts of the text: sums are added up, and the best entries of all stay.

    Args:
        states: each reads the tables of one part; they must have the same sizes and no window in common.
    """
    total: State | None = None
    for read in states:
        part = read()
        total = part if total is None else _sum(total, part)
    assert total is not None, "nothing to merge"
    return total


def _sum(one: State, other: State) -> State:
    top_key, top_position = _best(one.top_key_UQ, one.top_position_UQ, other.top_key_UQ, other.top_position_UQ)
    sample_key, payload = _best(one.sample_key_NZ, one.sample_payload_NZ, other.sample_key_NZ, other.sample_payload_NZ)
    return State(
        top_key, top_position, sample_key, payload,
        one.histogram_UY + other.histogram_UY, one.sum_CU + other.sum_CU, one.square_U + other.square_U,
        one.token_UV + other.token_UV,
    )  # fmt: skip


def _best(
    key_NQ: torch.Tensor, payload_NQ: torch.Tensor, keys_NQ: torch.Tensor, payloads_NQ: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = key_NQ.shape[1]
    key, order = torch.cat([key_NQ, keys_NQ], 1).sort(dim=1, descending=True, stable=True)
    return key[:, :kept].contiguous(), torch.cat([payload_NQ, payloads_NQ], 1).gather(1, order[:, :kept])
