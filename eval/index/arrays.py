"""The fixed-size arrays of an index, from tables of the pass to safetensors and back.

Dims: R groups, U units, Q contexts, A intervals, Z samples of an interval, Y bins, C labels, F firing tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from monet.eval.index import info as names
from monet.eval.index.keys import keys_of, priorities, token_hashes, unit_part, weights_of, window_part, windows_of
from monet.eval.index.tables import INTERVALS, SAMPLES, Sizes, State

POSITION_MASK = (1 << 16) - 1
Arrays = dict[str, NDArray[Any]]


def contexts_of(state: State) -> Arrays:
    """weight_UQ float32, window_UQ uint32, position_UQ uint16. Empty places have weight 0 and window 2^32 - 1."""
    return {
        "weight_UQ": weights_of(state.top_key_UQ).numpy(),
        "window_UQ": windows_of(state.top_key_UQ).numpy().astype(np.uint32),
        "position_UQ": state.top_position_UQ.numpy().astype(np.uint16),
    }


def samples_of(state: State) -> Arrays:
    """The same for samples: weight_UAZ, window_UAZ and position_UAZ."""
    shape = (len(state.square_U), INTERVALS, SAMPLES)
    payload = state.sample_payload_NZ
    return {
        "weight_UAZ": (payload >> 16).to(torch.int32).view(torch.float32).numpy().reshape(shape),
        "window_UAZ": windows_of(state.sample_key_NZ).numpy().astype(np.uint32).reshape(shape),
        "position_UAZ": (payload & POSITION_MASK).numpy().astype(np.uint16).reshape(shape),
    }


def counts_of(state: State) -> Arrays:
    """histogram_UY uint32, sum_CU int64 in units of 2^-30, square_U int64 in units of 2^-32."""
    return {
        "histogram_UY": state.histogram_UY.numpy().astype(np.uint32),
        "sum_CU": state.sum_CU.numpy(),
        "square_U": state.square_U.numpy(),
    }


def state_of(folder: Path, group: int, sizes: Sizes) -> State:
    """The tables of one group from the files of an index; token counts are empty unless it is a part with exact ones.

    Args:
        folder: folder of the index.
        group: routing group.
        sizes: sizes of the tables.
    """
    top = _group(folder / names.TOP, group)
    samples = _group(folder / names.SAMPLES, group)
    counts = _group(folder / names.COUNTS, group)
    weight, window, position = (
        torch.from_numpy(samples[f"{name}_UAZ"].astype(kind)).view(-1, SAMPLES)
        for name, kind in (("weight", np.float32), ("window", np.int64), ("position", np.int64))
    )
    unit_N = torch.arange(sizes.units).repeat_interleave(INTERVALS)[:, None].expand_as(window)
    priority = priorities(token_hashes(sizes.seed, window, position) + unit_part(group * sizes.units), unit_N)
    bits = weight.view(torch.int32).long()
    empty = windows_of(torch.zeros(1, dtype=torch.int64))
    filled = window != empty
    top_window = torch.from_numpy(top["window_UQ"].astype(np.int64))
    top_bits = torch.from_numpy(top["weight_UQ"]).view(torch.int32)
    return State(
        top_key_UQ=keys_of(top_bits, window_part(top_window)),
        top_position_UQ=torch.from_numpy(top["position_UQ"].astype(np.int32)),
        sample_key_NZ=torch.where(filled, keys_of(priority, window_part(window)), 0),
        sample_payload_NZ=torch.where(filled, bits << 16 | position, 0),
        histogram_UY=torch.from_numpy(counts["histogram_UY"].astype(np.int32)),
        sum_CU=torch.from_numpy(counts["sum_CU"]),
        square_U=torch.from_numpy(counts["square_U"]),
        token_UV=_token_counts(folder / names.TOKEN_COUNTS, group, sizes),
    )


def save_arrays(path: Path, groups: Iterable[Arrays], count: int, more: Arrays | None = None) -> None:
    """Write the arrays of all groups as one tensor each, with the group as first dimension: NAME_U -> NAME_RU.

    Args:
        path: safetensors file; not atomic, since an index is published as a whole folder.
        groups: the arrays of each group in turn.
        count: number of groups.
        more: further arrays, which do not belong to a group.
    """
    whole: Arrays = {}
    for group, arrays in enumerate(groups):
        for name, array in arrays.items():
            key = with_groups(name)
            if key not in whole:
                whole[key] = np.empty((count, *array.shape), array.dtype)
            whole[key][group] = array
    save_file({**whole, **(more or {})}, path)


def with_groups(name: str) -> str:
    """The name of an array that has a dimension for the groups: sum_CU -> sum_RCU."""
    head, _, dims = name.rpartition("_")
    return f"{head}_R{dims}"


def sparse_counts(token_UV: NDArray[np.int32]) -> Arrays:
    """Counts of firing tokens without the zeros: begin_U1 int64 (U + 1,), id_X and count_X int32."""
    unit_X, id_X = np.nonzero(token_UV)
    begin_U1 = np.searchsorted(unit_X, np.arange(len(token_UV) + 1)).astype(np.int64)
    return {"begin_U1": begin_U1, "id_X": id_X.astype(np.int32), "count_X": token_UV[unit_X, id_X]}


def _token_counts(path: Path, group: int, sizes: Sizes) -> torch.Tensor:
    if not sizes.vocabulary or not path.is_file():
        return torch.zeros(0, dtype=torch.int32)
    with safe_open(path, "numpy") as file:
        begin_U1, id_X, count_X = (file.get_tensor(f"{group}.{name}") for name in ("begin_U1", "id_X", "count_X"))
    token_UV = np.zeros((sizes.units, sizes.vocabulary), np.int32)
    token_UV[np.repeat(np.arange(sizes.units), np.diff(begin_U1)), id_X] = count_X
    return torch.from_numpy(token_UV)


def _group(path: Path, group: int) -> Arrays:
    """The arrays of one group of a file, without the dimension of the groups."""
    found = {}
    with safe_open(path, "numpy") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            head, _, dims = key.rpartition("_")
            if dims.startswith("R"):
                found[f"{head}_{dims[1:]}"] = file.get_slice(key)[group]
    return found
