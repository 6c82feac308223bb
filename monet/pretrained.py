"""Loading checkpoints with checks, and the fingerprint that ties masks and statistics to a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError, ConfigError
from monet.masks import ExpertMask

MASK_FILE = "expert_mask.safetensors"

_STRUCTURAL_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "moe_dim",
    "moe_heads",
    "moe_experts",
    "moe_topk",
    "moe_groups",
    "moe_decompose",
)
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def fingerprint(config: MonetConfig, model: nn.Module) -> str:
    """SHA-256 over the structural keys and the signs of all weights, first 32 hexadecimal digits.

    Signs survive every cast, so a checkpoint loaded in another dtype is still the same model.
    """
    digest = hashlib.sha256(json.dumps([getattr(config, key) for key in _STRUCTURAL_KEYS]).encode())
    for weight in model.parameters():
        digest.update(np.packbits(weight.detach().signbit().cpu().numpy().reshape(-1)).data)
    return digest.hexdigest()[:32]


def load_checked(
    cls: type, load: Callable[..., Any], name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
) -> Any:
    """Call transformers' `from_pretrained` as `load`, refuse what does not match, attach the stored mask.

    Raises:
        ConfigError: pickled weights or missing tensors were asked for.
        CheckpointError: the weights are absent or damaged, tensors are missing, superfluous, misshapen or not finite,
            or the stored mask does not fit.
    """
    if kwargs.setdefault("use_safetensors", True) is not True:
        raise ConfigError("use_safetensors=False: Monet reads safetensors only; convert the checkpoint first")
    if kwargs.pop("ignore_mismatched_sizes", False):
        raise ConfigError("ignore_mismatched_sizes=True: misshapen tensors would be replaced by random ones")
    wants_info = kwargs.pop("output_loading_info", False)
    try:
        model, info = load(name_or_path, *args, output_loading_info=True, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError, FileNotFoundError) as error:
        raise CheckpointError(f"{name_or_path}: unreadable or misshapen weights ({error})") from error
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise CheckpointError(
            f"{name_or_path}: no model.safetensors; pickled weights are never read, convert them first ({error})"
        ) from error
    if name_or_path is not None:
        _refuse_mismatches(cls, name_or_path, info)
        _refuse_impossible(name_or_path, model.state_dict())
        path = _mask_path(name_or_path, kwargs)
        if path is not None:
            model.set_expert_mask(ExpertMask.load(path))
    return (model, info) if wants_info else model


def _refuse_mismatches(cls: type, name_or_path: str | os.PathLike, info: dict[str, Any]) -> None:
    superfluous = {key for key in info["unexpected_keys"] if cls.__name__ != "MonetModel" or key != "lm_head.weight"}
    for what, keys in (("lacks", info["missing_keys"]), ("holds unknown", superfluous)):
        if keys:
            listed = ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")
            raise CheckpointError(f"{name_or_path}: the checkpoint {what} {len(keys)} tensors: {listed}")


def _refuse_impossible(name_or_path: str | os.PathLike, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.endswith("running_var") and not tensor.is_meta and bool((tensor < 0).any()):
            raise CheckpointError(f"{name_or_path}: tensor {name} holds a negative variance")
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name_or_path}: tensor {name} holds values that are NaN or infinite")


def _mask_path(name_or_path: str | os.PathLike, kwargs: dict[str, Any]) -> Path | None:
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
    path = cached_file(
        name_or_path, MASK_FILE, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, **hub,
    )  # fmt: skip
    return None if path is None else Path(path)
