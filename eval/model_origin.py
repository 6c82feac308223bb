"""Which model a result is about: its architecture, and how it was trained as far as its folder records that.

Models that agree in all of this but the seed are runs of one training: `monet report` takes their spread over seeds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from monet.errors import CheckpointError
from monet.eval.loading import fingerprint_of, settings_of
from monet.json_text import read_json
from monet.model_card import PROVENANCE


@dataclass(frozen=True)
class Training:
    """What `monet export` records of a model's training, as far as seeds are concerned. None is not recorded.

    Args:
        seed: of the initial weights.
        data_seed: of the order of the training text.
        step: optimiser steps.
        data_fingerprint: of the training text.
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
        config_digest: of the configuration, without weights; what only says where it comes from is left out.
        training: as the model's folder records it.
    """

    architecture: str
    config_digest: str
    training: Training


def origin_of(model: Any) -> ModelOrigin:
    """The origin of a model of transformers' kind, read from its configuration and its folder."""
    digest = hashlib.sha256(settings_of(model).encode()).hexdigest()[:16]
    name = type(model).__name__.removesuffix("ForCausalLM")
    return ModelOrigin(name, digest, _training(Path(str(getattr(model, "name_or_path", "")))))


def about_model(model: Any) -> dict[str, Any]:
    """What a result's provenance says about the model: its fingerprint and its origin, JSON-able."""
    return {"model_fingerprint": fingerprint_of(model), "model_origin": msgspec.to_builtins(origin_of(model))}


def _training(folder: Path) -> Training:
    """Of a folder of `monet export`; of any other folder or name nothing is known."""
    try:
        return msgspec.convert(read_json(folder / PROVENANCE, CheckpointError), Training)
    except (OSError, CheckpointError, msgspec.ValidationError):
        return Training()
