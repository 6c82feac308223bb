"""Writes the hybrid as a model folder, and moves a finished one to its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monet.configuration_monet import MonetConfig
from monet.convert.dense.architectures import kept_weights
from monet.convert.export import Cast, tokenizer_files
from monet.files import atomic_directory
from monet.model.modeling_monet import MonetForCausalLM
from monet.training.checkpoints import tensor_files
from monet.training.weights import check_fit, released_tensors

_LAST = "config.json"  # a model folder with this file is complete


def write_hybrid(
    folder: Path,
    dense: Any,
    config: MonetConfig,
    layers: Sequence[int],
    converted: Mapping[int, Mapping[str, Tensor]],
    tokenizer: Path,
    dtype: torch.dtype,
) -> None:
    """Write the hybrid's model folder; it appears whole or not at all.

    Weights are cast and written one file at a time.

    Args:
        folder: must not exist.
        dense: the dense model, whole.
        config: the hybrid's configuration.
        layers: the converted layers.
        converted: their folded routers and experts, by layer.
        tokenizer: folder with the tokenizer.
        dtype: data type of the weights; running statistics stay float32.
    Raises:
        CheckpointError: a weight is missing, superfluous or misshapen.
    """
    with torch.device("meta"):
        model = MonetForCausalLM(config)
    stored = kept_weights(dense, layers)
    for layer in layers:
        stored |= {f"model.layers.{layer}.{name}": tensor for name, tensor in converted[layer].items()}
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    weights = Cast(stored, {name for name, _ in model.named_parameters()}, dtype)
    check_fit(weights, released_tensors(model), "the converted model")
    config.dtype, config.architectures = dtype, [MonetForCausalLM.__name__]
    with atomic_directory(folder) as target:
        config.save_pretrained(target)
        if (generation := getattr(dense, "generation_config", None)) is not None:
            generation.save_pretrained(target)
        mode = (target / _LAST).stat().st_mode
        files = tensor_files.plan("model", weights)
        for file in files:
            tensor_files.write(target, file, weights, mode)
        tensor_files.write_index(target, "model", files, weights)
        for path in tokenizer_files(tokenizer):
            shutil.copyfile(path, target / path.name)


def is_finished(out: Path) -> bool:
    """Whether a conversion's folder holds the final model."""
    return (out / _LAST).is_file()


def move_model(folder: Path, out: Path) -> None:
    """Move a model folder's files into `out`, config.json last; after a kill, the same call continues."""
    names = sorted(path.name for path in folder.iterdir())
    for name in [*(name for name in names if name != _LAST), *(name for name in names if name == _LAST)]:
        os.replace(folder / name, out / name)
    folder.rmdir()
