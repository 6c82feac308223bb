"""The origin of a model: its architecture, and the record of its training in its folder.

Models that agree in everything except the seed are runs of one training: `monet report` takes their spread over seeds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from monet.convert.model_card import PROVENANCE
from monet.errors import CheckpointError
from monet.eval.core.loading import fingerprint_of, provenance_now, settings_of
from monet.json_text import read_json


@dataclass(frozen=True)
class Training:
    """What `monet export` records of a model's training, as far as seeds are concerned. None means not recorded.

    Args:
        seed: seed for the initial weights.
        data_seed: seed for the order of the training text.
        step: optimiser steps.
        data_fingerprint: fingerprint of the training text.
    """

    seed: int | None = None
    data_seed: int | None = None
    step: int | None = None
    data_fingerprint: str | None = None


@dataclass(frozen=True)
class ModelOrigin:
    """What models of several seeds have in common, and their seeds.

    Args:
        architecture: the class of the model, without "ForCausalLM".
        config_digest: digest of the configuration, without weights and without keys that only record the origin.
        training: the training record in the model's folder.
    """

    architecture: str
    config_digest: str
    training: Training


def origin_of(model: Any) -> ModelOrigin:
    """The origin of a transformers model, read from its configuration and its folder."""
    digest = hashlib.sha256(settings_of(model).encode()).hexdigest()[:16]
    name = type(model).__name__.removesuffix("ForCausalLM")
    return ModelOrigin(name, digest, _training(Path(str(getattr(model, "name_or_path", "")))))


def about_model(model: Any) -> dict[str, Any]:
    """Notes on the model for a result's provenance: its fingerprint and its origin, JSON-able."""
    return {"model_fingerprint": fingerprint_of(model), "model_origin": msgspec.to_builtins(origin_of(model))}


def about_run(model: Any) -> dict[str, Any]:
    """Notes on a measurement for a result's provenance: date, versions and the model, JSON-able."""
    return {**provenance_now(), "model": str(model.name_or_path), **about_model(model)}


def _training(folder: Path) -> Training:
    """The training record of a folder of `monet export`; an empty record for any other folder or name."""
    try:
        return msgspec.convert(read_json(folder / PROVENANCE, CheckpointError), Training)
    except (OSError, CheckpointError, msgspec.ValidationError):
        return Training()
