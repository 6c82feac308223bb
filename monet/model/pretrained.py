"""Loads checkpoints and checks them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from torch import Tensor

from monet.configuration_monet import MonetConfig
from monet.errors import CheckpointError, ConfigError
from monet.json_text import read_json
from monet.masks.expert_mask import MASK_FILE, ExpertMask
from monet.model.adapters import HUB_ARGUMENTS, hub_file, split_adapter
from monet.terminal import clean_log

# Parameters that belong to one task: a checkpoint of another task, or of MonetModel, may have them or not.
_HEADS = ("lm_head.", "score.", "qa_outputs.")


def load_checked(
    cls: type, load: Callable[..., Any], name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
) -> Any:
    """Call transformers' `from_pretrained` as `load`, refuse mismatches, attach the stored mask.

    For a folder that holds only a peft adapter, the result is the base model with the adapter. The base model is loaded
    and checked first, as it would be without the adapter.

    Raises:
        ConfigError: the call asked for pickled weights or for missing tensors, or a needed package is not installed.
        CheckpointError: the weights are missing or damaged, or the stored mask does not fit. Tensors are missing,
            superfluous, misshapen or not finite (only a task's head may be new, and only another task's head may be
            left over). Or the folder has both a model and an adapter.
    """
    if kwargs.get("use_safetensors") not in (None, True):
        raise ConfigError(
            f"use_safetensors={kwargs['use_safetensors']!r}: Monet reads only safetensors; convert the checkpoint first"
        )
    kwargs["use_safetensors"] = True
    if kwargs.pop("ignore_mismatched_sizes", False):
        raise ConfigError(
            "ignore_mismatched_sizes=True: misshapen tensors would be replaced by random ones; omit the option"
        )
    wants_info = kwargs.pop("output_loading_info", False)
    adapter = None
    if name_or_path is not None:
        name_or_path, adapter = split_adapter(name_or_path, kwargs)
        _check_index(name_or_path, kwargs)
    try:
        with clean_log("transformers.modeling_utils"):  # its messages list names of tensors
            model, info = load(name_or_path, *args, output_loading_info=True, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:  # the configuration or a keyword asks for a package
        raise ConfigError(f"{name_or_path}: {' '.join(str(error).split())}") from error
    except (SafetensorError, RuntimeError, FileNotFoundError) as error:
        raise CheckpointError(f"{name_or_path}: unreadable or misshapen weights ({error})") from error
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        if (variant := kwargs.get("variant")) is not None:
            raise CheckpointError(
                f"{name_or_path}: no safetensors weights of variant={variant!r}; name an existing variant, or omit "
                f"variant to load model.safetensors ({error})"
            ) from error
        raise CheckpointError(
            f"{name_or_path}: no model.safetensors; pickled weights are never read, so convert them first ({error})"
        ) from error
    if name_or_path is not None:
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        _refuse_mismatches(model, name_or_path, info, hub)
        loaded = model.state_dict()
        _refuse_impossible(name_or_path, loaded)
        if isinstance(model.config, MonetConfig):
            model.base_model.identity.files = _weight_files(name_or_path, hub, kwargs.get("variant"))
            _attach_mask(model, name_or_path, hub)
        if adapter is not None:
            adapter.put_on(model)
            _refuse_impossible(adapter.source, model.state_dict(), checked=loaded.values())
    return (model, info) if wants_info else model


def _refuse_mismatches(model: Any, name_or_path: str | os.PathLike, info: dict[str, Any], hub: dict[str, Any]) -> None:
    """Refuse missing or unknown tensors of the body; parameters of another task's head may be left over.

    A checkpoint of another class may lack the head's parameters, but not `lm_head`: random logits do not make a
    language model.
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
    """Names of the classes that wrote a checkpoint, from its config.json."""
    keys, _ = MonetConfig.get_config_dict(name_or_path, **hub)
    return keys.get("architectures") or []


def _refuse_impossible(
    name_or_path: str | os.PathLike, state: dict[str, Tensor], checked: Iterable[Tensor] = ()
) -> None:
    """Refuse values that are not finite, and negative variances, except in tensors that were `checked` before."""
    known = {_place(tensor) for tensor in checked}
    for name, tensor in state.items():
        # Quantised or sharded tensors do not have these operators; offloaded ones have no content here.
        if tensor.is_meta or hasattr(tensor, "__tensor_flatten__") or _place(tensor) in known:
            continue
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise CheckpointError(f"{name_or_path}: tensor {name} holds a negative variance")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name_or_path}: tensor {name} holds values that are NaN or infinite")


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.data_ptr()


def _attach_mask(model: Any, source: str | os.PathLike, hub: dict[str, Any]) -> None:
    named: dict[str, str] | None = model.config.expert_mask
    path = hub_file(source, MASK_FILE, hub)
    if path is None:
        if named is None:
            return
        raise CheckpointError(
            f"{source}: config.json names the expert mask {named['file']}, which is missing; fetch it too, since it "
            'removes experts from the model, or delete "expert_mask" from config.json to load the unmasked model'
        )
    mask = ExpertMask.load(path)
    if named is not None and mask.digest != named["digest"]:
        raise CheckpointError(
            f"{path}: the mask's digest is {mask.digest[:16]}..., but config.json names {named['digest'][:16]}...; "
            "fetch both files from the same place"
        )
    model.set_expert_mask(mask)


def remove_uploaded_mask(repo_id: str, token: str | bool | None, revision: str | None) -> None:
    """Delete a repository's mask file from an earlier upload, so that it does not mask this model.

    Args:
        repo_id, token, revision: as in `push_to_hub`.
    """
    api = HfApi(token=token)
    try:
        if api.file_exists(repo_id, MASK_FILE, revision=revision):
            message = "Remove the expert mask: this model has none"
            api.delete_file(MASK_FILE, repo_id, revision=revision, commit_message=message)
    except Exception as error:  # the upload has succeeded; a failure here must not look like a failed upload
        warnings.warn(
            f"{repo_id}: cannot check for an earlier upload's mask ({error}); delete {MASK_FILE} there if it exists",
            stacklevel=2,
        )


def _weight_files(source: str | os.PathLike, hub: dict[str, Any], variant: str | None) -> tuple[Path, ...]:
    """The safetensors files that the weights came from; empty if they are unknown."""
    middle, local = f".{variant}" if variant else "", hub | {"local_files_only": True}
    whole = hub_file(source, f"model{middle}.safetensors", local)
    if whole is not None:
        return (whole,)
    index = hub_file(source, f"model.safetensors.index{middle}.json", local)
    if index is None:
        return ()
    return tuple(index.parent / name for name in _names_in(index))


def _check_index(source: str | os.PathLike, kwargs: dict[str, Any]) -> None:
    """Refuse an index of weights that transformers cannot follow, or that leads out of the folder."""
    variant = kwargs.get("variant")
    name = f"model.safetensors.index{f'.{variant}' if variant else ''}.json"
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
    if (index := hub_file(source, name, hub)) is not None:
        _names_in(index)


def _names_in(index: Path) -> list[str]:
    """Names of the files in an index of weights, all of which are in the index's own folder.

    Raises:
        CheckpointError: the index cannot be read, or names a file in another folder.
    """
    content = read_json(index, CheckpointError)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    names = set(listed.values()) if isinstance(listed, dict) and all(map(_is_file_name, listed.values())) else set()
    if not names:
        raise CheckpointError(f"{index}: weight_map must map each tensor to a .safetensors file in the same folder")
    return sorted(names)


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
