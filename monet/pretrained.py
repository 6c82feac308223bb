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
# Parameters that belong to one task: a checkpoint of another task, or of MonetModel, may hold or lack them.
_HEADS = ("lm_head.", "score.", "qa_outputs.")
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
        CheckpointError: the weights are absent or damaged; tensors are missing, superfluous, misshapen or not finite
            (only a task's head may be new, and only another task's head may be left over); or the stored mask does not
            fit.
    """
    if kwargs.get("use_safetensors") not in (None, True):
        raise ConfigError(
            f"use_safetensors={kwargs['use_safetensors']!r}: Monet reads safetensors only; convert the checkpoint first"
        )
    kwargs["use_safetensors"] = True
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
        if (variant := kwargs.get("variant")) is not None:
            raise CheckpointError(
                f"{name_or_path}: no safetensors weights of variant={variant!r}; name a variant that is there, or "
                f"leave variant out to load model.safetensors ({error})"
            ) from error
        raise CheckpointError(
            f"{name_or_path}: no model.safetensors; pickled weights are never read, convert them first ({error})"
        ) from error
    if name_or_path is not None:
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
        _refuse_mismatches(model, name_or_path, info, hub)
        _refuse_impossible(name_or_path, model.state_dict())
        path = _mask_path(name_or_path, hub)
        if path is not None:
            model.set_expert_mask(ExpertMask.load(path))
    return (model, info) if wants_info else model


def _refuse_mismatches(model: Any, name_or_path: str | os.PathLike, info: dict[str, Any], hub: dict[str, Any]) -> None:
    """Every tensor of the body must be there, and no other; parameters of another task's head may be left over.

    A checkpoint of another class may lack the head's parameters, but not `lm_head`: random logits are no language
    model.
    """
    missing, superfluous = set(info["missing_keys"]), set(info["unexpected_keys"])
    if (missing or superfluous) and type(model).__name__ not in _architectures(name_or_path, hub):
        if model.base_model is not model:
            missing = {key for key in missing if key.startswith((f"{model.base_model_prefix}.", "lm_head."))}
        superfluous = {key for key in superfluous if not key.startswith(_HEADS)}
    for what, keys in (("lacks", missing), ("holds unknown", superfluous)):
        if keys:
            listed = ", ".join(sorted(keys)[:5]) + (", ..." if len(keys) > 5 else "")
            raise CheckpointError(f"{name_or_path}: the checkpoint {what} {len(keys)} tensors: {listed}")


def _architectures(name_or_path: str | os.PathLike, hub: dict[str, Any]) -> list[str]:
    """Names of the classes that wrote a checkpoint, from its own config.json."""
    keys, _ = MonetConfig.get_config_dict(name_or_path, **hub)
    return keys.get("architectures") or []


def _refuse_impossible(name_or_path: str | os.PathLike, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.endswith("running_var") and not tensor.is_meta and bool((tensor < 0).any()):
            raise CheckpointError(f"{name_or_path}: tensor {name} holds a negative variance")
        if tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name_or_path}: tensor {name} holds values that are NaN or infinite")


def _mask_path(name_or_path: str | os.PathLike, hub: dict[str, Any]) -> Path | None:
    path = cached_file(
        name_or_path, MASK_FILE, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, **hub,
    )  # fmt: skip
    return None if path is None else Path(path)
