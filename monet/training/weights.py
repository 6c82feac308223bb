"""Loads the weights of a checkpoint into a model by name, and checks shape and data type of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from monet.errors import CheckpointError
from monet.training.checkpoints.checkpoint import read_config, read_entry, read_weights
from monet.training.language_models import LanguageModel, class_of, config_of


def load_checkpoint_model(folder: Path) -> LanguageModel:
    """Return the language model of a checkpoint folder, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape or data type; names it.
    """
    model = model_without_weights(folder)
    copy_strictly(read_weights(folder), released_tensors(model), f"checkpoint {folder}")
    return model.eval()


def model_without_weights(folder: Path) -> LanguageModel:
    """Build the model of a checkpoint's configuration; under `torch.device("meta")` it takes no memory."""
    config = config_of(read_config(folder))
    return class_of(config)(config)


def trained_with_document_masks(folder: Path) -> bool:
    """Return whether the run of a checkpoint folder separated the documents of a window (`data.document_mask`).

    The configuration in checkpoints of earlier versions does not record this, but the data position does.
    """
    return bool((read_entry(folder, "MonetDataModule") or {}).get("document_mask"))


def released_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Return the model's parameters and buffers under their released names; a tied output head is left out."""
    tensors = model.state_dict(keep_vars=True)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def copy_strictly(source: Mapping[str, Tensor], target: dict[str, Tensor], what: str) -> None:
    """Copy tensors by name, after `check_fit`.

    Args:
        source: tensors read from a file.
        target: the model's tensors, overwritten in place.
        what: name of the source, for messages.
    """
    check_fit(source, target, what)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def check_fit(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Check that names, shapes and data types agree on both sides; all weights together may have half precision.

    Raises:
        CheckpointError: names up to five tensors of each kind of mismatch.
    """
    if missing := sorted(target.keys() - source.keys()):
        raise CheckpointError(f"{what} lacks {len(missing)} weights of the model: {some_of(missing)}")
    if unknown := sorted(source.keys() - target.keys()):
        raise CheckpointError(f"{what} has {len(unknown)} weights that the model does not have: {some_of(unknown)}")
    unlike, weights = [], {source[name].dtype for name, tensor in target.items() if tensor.requires_grad}
    for name, tensor in target.items():
        shape, dtype = source[name].shape, source[name].dtype
        half = tensor.requires_grad and len(weights) == 1 and str(dtype) in ("torch.bfloat16", "torch.float16")
        if shape != tensor.shape or (dtype != tensor.dtype and not half):
            unlike.append(f"{name}: {tuple(shape)} {dtype} for {tuple(tensor.shape)} {tensor.dtype}")
    if unlike:
        raise CheckpointError(f"{what} does not fit the model: {some_of(unlike)}")


def some_of(items: list[str]) -> str:
    """Return the first five of some names, and how many more there are."""

    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
