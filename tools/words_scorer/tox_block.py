"""The teacher of the words classifier: ToxBlock 0.1.2 (MIT), a recurrent network trained on Jigsaw's comments (CC0).

    pip download --no-deps tox-block==0.1.2     # then unzip the wheel; no import, no TensorFlow

Its weights are read as plain HDF5 and run in torch. Its vocabulary is a pickle, which is never loaded: the code lists
the file's instructions (`pickletools.genops`) and takes the words and their numbers from the list.

Dims: B texts, T words of a text (the last hundred), D width of an embedding, H width of the network.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from monet.errors import DataError

HEADS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
_WORDS = 100
_NUM_KNOWN = 20_000
_SEPARATORS = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))
_NUMBERS = ("BININT", "BININT1", "BININT2")


def read_vocabulary(path: Path) -> dict[str, int]:
    """Words and their numbers from the pickled tokenizer, without running any of its instructions.

    Raises:
        DataError: the file has no table of words.
    """
    memory: dict[int, str | None] = {}
    words: dict[str, int] = {}
    last: str | None = None
    inside = False
    with open(path, "rb") as file:
        for instruction, given, _ in pickletools.genops(file):
            name, argument = instruction.name, cast(Any, given)
            if name.endswith("BINPUT"):
                memory[argument] = last
                continue
            if name.endswith("BINUNICODE"):
                last = argument
            elif name.endswith("BINGET"):
                last = memory.get(argument)
            elif inside and name in _NUMBERS and last is not None:
                words[last] = argument
            if last == "word_index" and not inside:
                inside = True
            elif inside and last == "index_word" and not name.endswith("BINGET"):
                break  # the table the other way round; the word itself would come out of the memory
    words = {word: number for word, number in words.items() if number < _NUM_KNOWN}
    if len(words) != _NUM_KNOWN - 1:
        raise DataError(f"{path}: {len(words)} words where ToxBlock 0.1.2 knows {_NUM_KNOWN - 1}")
    return words


class ToxBlock:
    """The network.

    Args:
        folder: `tox_block/trained_models` in the unpacked package.
    """

    def __init__(self, folder: Path) -> None:
        import h5py  # pyright: ignore[reportMissingImports]

        self.words = read_vocabulary(folder / "encoder_0.1.2.pkl")
        with h5py.File(folder / "lstm_model_0.1.2.h5") as file:
            tensors = file["model_weights"]

            def tensor(name: str) -> Tensor:
                return torch.from_numpy(np.asarray(tensors[f"{name}:0"]))  # pyright: ignore[reportIndexIssue]

            self._embedding_VD = tensor("embedding/embedding/embeddings")
            self._directions = [
                [tensor(f"bidirectional/bidirectional/{way}_lstm/{part}") for part in
                 ("kernel", "recurrent_kernel", "bias")]
                for way in ("forward", "backward")
            ]  # fmt: skip
            self._dense = [[tensor(f"{name}/{name}/{part}") for part in ("kernel", "bias")] for name in
                           ("dense", "dense_1")]  # fmt: skip

    @torch.no_grad()
    def scores(self, texts: Sequence[str], batch_size: int = 512) -> Tensor:
        """Probabilities of the six heads, (texts, 6) float32."""
        found = [self._scores(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        return torch.cat(found)

    def _scores(self, texts: Sequence[str]) -> Tensor:
        x_BTD = self._embedding_VD[torch.tensor([self._numbers(text) for text in texts])]
        forward, backward = self._directions
        pooled_BX = torch.cat([_highest(x_BTD, *forward), _highest(x_BTD.flip(1), *backward)], -1)
        (inner, inner_bias), (outer, outer_bias) = self._dense
        return torch.sigmoid(torch.relu(pooled_BX @ inner + inner_bias) @ outer + outer_bias)

    def _numbers(self, text: str) -> list[int]:
        known = [self.words[word] for word in text.lower().translate(_SEPARATORS).split(" ") if word in self.words]
        return [0] * (_WORDS - len(known)) + known[-_WORDS:]


def _highest(x_BTD: Tensor, kernel: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
    """Keras's LSTM with hard-sigmoid gates, and the highest value of each unit over time: (B, H)."""
    H = recurrent.shape[0]
    h_BH = x_BTD.new_zeros(len(x_BTD), H)
    c_BH, highest_BH = torch.zeros_like(h_BH), torch.full_like(h_BH, -1.0)
    for step in (x_BTD @ kernel + bias).unbind(1):
        i, f, g, o = (step + h_BH @ recurrent).chunk(4, dim=1)
        c_BH = _gate(f) * c_BH + _gate(i) * g.tanh()
        h_BH = _gate(o) * c_BH.tanh()
        highest_BH = torch.maximum(highest_BH, h_BH)
    return highest_BH


def _gate(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0.0, 1.0)
