"""The weights of a checkpoint in a model: every tensor by its name, with shape and data type checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from monet.errors import CheckpointError
from monet.training.checkpoint import read_config, read_entry, read_weights
from monet.training.language_models import LanguageModel, class_of, config_of


def load_checkpoint_model(folder: Path) -> LanguageModel:
    """The language model a checkpoint folder holds, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape or data type; names it.
    """
    model = model_without_weights(folder)
    copy_strictly(read_weights(folder), released_tensors(model), f"checkpoint {folder}")
    return model.eval()


def model_without_weights(folder: Path) -> LanguageModel:
    """The model of a checkpoint's configuration, as it is built; under `torch.device("meta")` it takes no memory."""
    config = config_of(read_config(folder))
    return class_of(config)(config)


def trained_with_document_masks(folder: Path) -> bool:
    """Whether the run of a checkpoint folder kept the documents of a window apart (`data.document_mask`).

    The configuration in checkpoints of earlier versions does not say so; the data's position does.
    """
    return bool((read_entry(folder, "MonetDataModule") or {}).get("document_mask"))


def released_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The model's parameters and buffers under their released names; a tied output head is left out."""
    tensors = model.state_dict(keep_vars=True)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def copy_strictly(source: Mapping[str, Tensor], target: dict[str, Tensor], what: str) -> None:
    """Copy tensors by name, after `check_fit`.

    Args:
        source: tensors read from a file.
        target: the model's tensors, overwritten in place.
        what: name of the source in messages.
    """
    check_fit(source, target, what)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def check_fit(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Names, shapes and data types must agree on both sides; all weights together may be of half precision.

    Raises:
        CheckpointError: names up to five tensors of each kind of disagreement.
    """
    if missing := sorted(target.keys() - source.keys()):
        raise CheckpointError(f"{what} lacks {len(missing)} weights of the model: {some_of(missing)}")
    if unknown := sorted(source.keys() - target.keys()):
        raise CheckpointError(f"{what} has {len(unknown)} weights the model does not know: {some_of(unknown)}")
    unlike, weights = [], {source[name].dtype for name, tensor in target.items() if tensor.requires_grad}
    for name, tensor in target.items():
        shape, dtype = source[name].shape, source[name].dtype
        half = tensor.requires_grad and len(weights) == 1 and str(dtype) in ("torch.bfloat16", "torch.float16")
        if shape != tensor.shape or (dtype != tensor.dtype and not half):
            unlike.append(f"{name}: {tuple(shape)} {dtype} for {tuple(tensor.shape)} {tensor.dtype}")
    if unlike:
        raise CheckpointError(f"{what} does not fit the model: {some_of(unlike)}")


def some_of(items: list[str]) -> str:
    """The first five of some names, and how many more there are."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
