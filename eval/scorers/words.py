"""A small English toxicity classifier that comes with Monet: logistic regression on hashed words and parts of words.

The file `words.safetensors` next to this module holds its weights. `python -m tools.words_scorer.train train` writes
them and documents the training data; `python -m tools.words_scorer.train check` prints the accuracy. The classifier
knows rude words and their spellings, but little grammar and no irony.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monet.errors import CheckpointError
from monet.eval.scorers.scorers import Outcome, Score
from monet.files import sha256_file

WEIGHTS = Path(__file__).with_name("words.safetensors")
FORMAT = "monet-words/1"
NUM_FEATURES = 1 << 17
_MOST_WORDS = 512
# A symbol between letters belongs to the word, because rude words are often written with one.
_WORD = re.compile(r"[^\W_]+(?:['*@$!][^\W_]+)*")
_LONG_RUN = re.compile(r"(.)\1{2,}", re.DOTALL)


def features(text: str) -> list[int]:
    """Distinct numbers below `NUM_FEATURES` for a text's words, pairs of words, and runs of 3 to 5 letters.

    Upper and lower case are equal. Three or more equal letters in a row count as two. Words after the 512th are left
    out.
    """
    words = _WORD.findall(_LONG_RUN.sub(r"\1\1", text.lower()))[:_MOST_WORDS]
    found = {zlib.crc32(feature.encode()) % NUM_FEATURES for feature in _names(words)}
    return sorted(found)


def _names(words: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(words):
        yield f"w{word}"
        if place:
            yield f"b{words[place - 1]} {word}"
        framed = f"<{word}>"
        for length in (3, 4, 5):
            for start in range(len(framed) - length + 1):
                yield f"c{framed[start : start + length]}"


def bags(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Features of texts one after another, and the start of each text, as `F.embedding_bag` takes them."""
    lists = [features(text) for text in texts]
    starts = torch.tensor([0, *(len(listed) for listed in lists)][: len(lists)]).cumsum(0)
    return torch.tensor([number for listed in lists for number in listed], dtype=torch.int64), starts


class WordsScorer:
    """Probability that a text is toxic, by the classifier that comes with Monet.

    Args:
        weights: file of weights.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(weights, "pt") as file:
                if (file.metadata() or {}).get("format") != FORMAT:
                    raise CheckpointError(f"{weights}: not weights of the words classifier")
                self._weight_F1 = file.get_tensor("weight").float()[:, None]
                self._bias = float(file.get_tensor("bias"))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{weights}: weights cannot be read ({error}); install Monet again") from None
        if self._weight_F1.shape != (NUM_FEATURES, 1):
            raise CheckpointError(
                f"{weights}: {len(self._weight_F1)} weights, expected {NUM_FEATURES}; install Monet again"
            )
        self._digest = sha256_file(weights)

    @property
    def key(self) -> dict[str, Any]:
        return {"kind": "words", "weights": self._digest}

    @property
    def at_once(self) -> int:
        return 1024

    def score(self, texts: Sequence[str]) -> list[Outcome]:
        """Return one score per text."""
        numbers, starts = bags(texts)
        logits_B = F.embedding_bag(numbers, self._weight_F1, starts, mode="sum")[:, 0] + self._bias
        return [Score(value) for value in logits_B.sigmoid().tolist()]
