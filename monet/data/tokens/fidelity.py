"""Measures what a tokenizer loses: unknown ids, letters that decoding does not restore, special ids in a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from monet.data.documents.sources import Skipped
from monet.data.tokens.tokenizer import Encoder

SAMPLE_CHARACTERS = 1 << 14
_SPACE = "▁"  # sentencepiece's symbol for a space
_MUCH = 0.001  # share of ids or letters above which a domain gets a note
_KEYS = ("tokens", "unknown_ids", "sampled_letters", "lost_letters")


class Fidelity:
    """Counts, by domain, the text that the ids of a preparation lose.

    Args:
        encoder: the encoder to measure.
        skipped: collects documents that are left out; raises an error unless its rule is "skip".
        state: a result of `state()`; None starts from zero.
    """

    def __init__(self, encoder: Encoder, skipped: Skipped, state: dict[str, Any] | None = None) -> None:
        self._encoder = encoder
        self.skipped = skipped
        self._counts: dict[str, Counter[str]] = {}
        if state:
            skipped.restore(state["skipped"])
            self._counts = {domain: Counter(counts) for domain, counts in state["domains"].items()}

    def state(self) -> dict[str, Any]:
        """Return all counts; can be written as JSON."""
        return {"skipped": self.skipped.state(), "domains": self.domains()}

    def domains(self) -> dict[str, dict[str, int]]:
        """Return, for each domain: tokens, unknown ids, letters in the sample, and letters that decoding loses."""
        return {domain: {key: counts[key] for key in _KEYS} for domain, counts in sorted(self._counts.items())}

    def check(self, ids: np.ndarray, domain: str, name: str) -> bool:
        """Count a document's ids; return whether the document can be kept.

        Args:
            ids: (tokens,) uint32, with prefix and eos.
        Raises:
            DataError: eos or bos is inside the document, and the rule is not to skip such documents.
        """
        inner = ids[len(self._encoder.prefix) : -1]
        if (found := np.isin(inner, self._encoder.forbidden)).any():
            place = int(np.argmax(found))
            token = self._encoder.backend.id_to_token(int(inner[place]))
            self.skipped.problem(
                "special token in the text",
                f"{name}: token {place} of the text is {token!r}, which marks where documents begin or end, but the "
                "tokenizer's vocabulary also matches it in text; use another tokenizer",
            )
            return False
        counts = self._counts.setdefault(domain, Counter())
        counts["tokens"] += ids.size
        if self._encoder.unknown_id is not None:
            counts["unknown_ids"] += int(np.count_nonzero(inner == self._encoder.unknown_id))
        return True

    def sample(self, text: str, domain: str) -> None:
        """Encode and decode the start of a text, and count the letters that decoding does not restore.

        Changes by the tokenizer's own normaliser (such as upper case) and spaces do not count.
        """
        backend = self._encoder.backend
        text = text[:SAMPLE_CHARACTERS]
        decoded = backend.decode(self._encoder.plain([text])[0], skip_special_tokens=True)
        wanted = _letters(text if backend.normalizer is None else backend.normalizer.normalize_str(text))
        counts = self._counts.setdefault(domain, Counter())
        counts["sampled_letters"] += wanted.total()
        counts["lost_letters"] += (wanted - _letters(decoded)).total()


def notes_on_loss(domains: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a sentence for each domain in which the tokenizer loses much.

    Args:
        domains: the result of `Fidelity.domains`.
    """
    notes = []
    for domain, counts in domains.items():
        unknown = counts["unknown_ids"] / max(counts["tokens"], 1)
        lost = counts["lost_letters"] / max(counts["sampled_letters"], 1)
        if max(unknown, lost) > _MUCH:
            notes.append(
                f"domain {domain!r}: {unknown:.1%} of the ids are the unknown token, and {lost:.1%} of the letters "
                "of a sample do not come back from their ids; a byte-level tokenizer loses nothing"
            )
    return notes


def _letters(text: str) -> Counter[str]:
    return Counter("".join(text.split()).replace(_SPACE, ""))
