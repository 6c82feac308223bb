"""Converts a tree of Python values to JSON and named tensors: exact in both directions, and never executable."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monet.errors import CheckpointError

TAG = "$"  # the key that marks an encoded value; a user's dict with this key is encoded as pairs


def encode(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree into JSON and tensors.

    Args:
        tree: None, bool, int, float (also NaN and infinities), str, bytes, list, tuple, dict with such keys,
            OrderedDict, torch.Tensor, torch.dtype, torch.Size, numpy array or scalar, in any nesting.
    Returns:
        A value for `json.dumps`, and contiguous CPU tensors by their path in the tree, with their dtypes.
    Raises:
        CheckpointError: a value has another type; names its path and type.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, "", tensors), tensors


def decode(document: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `encode`.

    Raises:
        CheckpointError: an unknown tag, or a missing tensor.
    """
    if isinstance(document, list):
        return [decode(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    if TAG not in document:
        return {key: decode(value, tensors) for key, value in document.items()}
    return _decode_tagged(document, tensors)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {TAG: "float", "value": repr(value)}
    if isinstance(value, Tensor):
        return {TAG: "tensor", "name": _store(value, path, tensors)}
    if isinstance(value, np.ndarray):
        return {
            TAG: "ndarray",
            "name": _store(torch.from_numpy(_portable(value, path)), path, tensors),
            "dtype": value.dtype.str,
        }
    if isinstance(value, np.generic):
        return {TAG: "numpy", "dtype": value.dtype.str, "hex": value.tobytes().hex()}
    if isinstance(value, torch.Size):
        return {TAG: "size", "items": list(value)}
    if isinstance(value, torch.dtype):
        return {TAG: "dtype", "value": str(value).removeprefix("torch.")}
    if type(value) is bytes:
        return {TAG: "bytes", "hex": value.hex()}
    if type(value) is list:
        return [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    if type(value) is tuple:
        return {TAG: "tuple", "items": [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    if type(value) in (dict, OrderedDict):
        return _encode_dict(value, path, tensors)
    raise CheckpointError(
        f"cannot store {path.lstrip('.') or 'the value'}: a {type(value).__module__}.{type(value).__qualname__};"
        " keep plain values, tensors and arrays in the state"
    )


def _encode_dict(value: dict[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    encoded = [
        (_encode(key, f"{path}.<key>", tensors), _encode(item, f"{path}.{key}", tensors)) for key, item in value.items()
    ]
    if type(value) is dict and TAG not in value and all(type(key) is str for key in value):
        return dict(encoded)
    return {TAG: "dict" if type(value) is dict else "ordered", "items": [list(pair) for pair in encoded]}


def _store(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    name = path.lstrip(".") or "value"
    while name in tensors:  # {1: a, "1": b} gives the same path twice
        name += "'"
    # copy, because two tensors that share memory cannot be written to one file
    tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return name


def _portable(array: np.ndarray, path: str) -> np.ndarray:
    try:
        torch.from_numpy(array[:0].copy() if array.ndim else array.copy())
    except TypeError:
        raise CheckpointError(f"cannot store {path.lstrip('.')}: a numpy array of dtype {array.dtype}") from None
    return np.ascontiguousarray(array).reshape(array.shape)


def _decode_tagged(document: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    tag = document[TAG]
    if tag in ("tensor", "ndarray"):
        name = document["name"]
        if name not in tensors:
            raise CheckpointError(f"the state refers to tensor {name!r}, which is not stored")
        return tensors[name] if tag == "tensor" else tensors[name].numpy().astype(document["dtype"], copy=False)
    if tag in ("dict", "ordered"):
        pairs = [(decode(key, tensors), decode(item, tensors)) for key, item in document["items"]]
        return dict(pairs) if tag == "dict" else OrderedDict(pairs)
    if tag == "tuple":
        return tuple(decode(item, tensors) for item in document["items"])
    if tag == "float":
        return float(document["value"])
    if tag == "size":
        return torch.Size(document["items"])
    if tag == "dtype":
        dtype = getattr(torch, document["value"], None)
        if isinstance(dtype, torch.dtype):
            return dtype
    if tag == "bytes":
        return bytes.fromhex(document["hex"])
    if tag == "numpy":
        return np.frombuffer(bytes.fromhex(document["hex"]), dtype=document["dtype"])[0]
    raise CheckpointError(f"the state holds an unknown kind of value: {document!r:.200}")
