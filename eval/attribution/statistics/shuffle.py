"""Shuffle labels and scores over whole documents, as a comparison for a selection.

A rule finds some experts under any labels. Meaningless labels show how many it finds by chance: every document takes
the label, and the scores, of another document. Documents are moved whole, because the tokens of one document are not
independent. A document is all sequences that begin in it, as for the bootstrap and for `--shard`. A sequence that holds
several documents moves with the first of them. If the data hold the source of every document, all documents of a source
move together: records of one original are not independent either. docs/architecture.md explains the dims; C stands for
labels, Q for permutations, U for documents (or sources), S for sequences.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, cast

import torch
from torch import Tensor

from monet.eval.attribution.statistics.collectors import Tokens, check_scored
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.core.inputs import Batch, LabelledData


class _Documents(NamedTuple):
    """The documents of the data, from one reading.

    Args:
        label_U: int64.
        tokens_U, sequences_U: int64, counted tokens and sequences of each document.
        document_S: int64, the document of each sequence in the order of the data.
        first_S: int64, number of the document's counted tokens in earlier sequences.
        score_X: float64, scores of all counted tokens, document by document; None for text without scores.
    """

    label_U: Tensor
    tokens_U: Tensor
    sequences_U: Tensor
    document_S: Tensor
    first_S: Tensor
    score_X: Tensor | None


def _read(data: LabelledData, batch_size: int, exclusion: Exclusion) -> _Documents:
    places: dict[tuple[int, str], int] = {}
    labels: list[int] = []
    tokens: list[int] = []
    document_of: list[int] = []
    first: list[int] = []
    scores: list[Tensor] = []
    lengths: list[int] = []
    sources = data.window_sources()
    by_source = not any(None in found for found in sources.values())
    origins = {label: iter(sources.get(name, ())) for label, name in enumerate(data.labels)} if by_source else {}
    for batch in data.batches(batch_size):
        if lengths:
            check_scored(batch, bool(scores))
        counted = Tokens.of(batch, torch.device("cpu"), exclusion)
        lengths += counted.per_sequence(batch).tolist()
        if counted.score_X is not None:
            scores.append(counted.score_X)
        for label, name in zip(batch.label_B.tolist(), batch.document_B, strict=True):
            name = cast(str, next(origins[label])) if by_source else name
            number = places.setdefault((label, name), len(places))
            if number == len(labels):
                labels.append(label)
                tokens.append(0)
            first.append(tokens[number])
            tokens[number] += lengths[len(document_of)]
            document_of.append(number)
    label_U, tokens_U, document_S, first_S, length_S = (
        torch.tensor(numbers, dtype=torch.int64) for numbers in (labels, tokens, document_of, first, lengths)
    )
    score_X = None
    if scores:
        of_token_X = document_S.repeat_interleave(length_S)
        score_X = torch.cat(scores)[of_token_X.argsort(stable=True)]
    sequences_U = torch.bincount(document_S, minlength=len(labels))
    return _Documents(label_U, tokens_U, sequences_U, document_S, first_S, score_X)


class Shuffle:
    """Some permutations of the data's documents; gives every batch's tokens the labels and scores of other documents.

    The number of documents of each label does not change. A document with n counted tokens takes the first n scores of
    the other document, and starts again at its beginning if it is shorter. So scores that hold for a whole text stay
    whole, and scores of consecutive tokens stay consecutive. The permutations depend on the seed and on the data's
    fingerprint, so parts of one corpus get independent permutations.

    Args:
        data: the data; read once, without the model.
        batch_size: sequences that are read at a time; it does not change the result.
        exclusion: tokens that are not counted; a document that has only such tokens stays unchanged.
        count: number of permutations.
        seed: another seed gives other permutations.

    Attributes:
        count: number of permutations; 0 if all documents have one label and no score, so that nothing would change.
        documents: number of shuffled documents.
    """

    def __init__(self, data: LabelledData, batch_size: int, exclusion: Exclusion, count: int, seed: int) -> None:
        self.seed = seed
        self.num_labels = len(data.labels)
        self.found = _read(data, batch_size, exclusion)
        moved_M = (self.found.tokens_U > 0).nonzero().view(-1)
        self.documents = len(moved_M)
        differ = len(self.found.label_U[moved_M].unique()) > 1
        self.count = count if differ or (self.found.score_X is not None and self.documents > 1) else 0
        self.giver_QU = torch.arange(len(self.found.label_U)).repeat(self.count, 1)
        fingerprint = data.fingerprint if self.count else ""
        for number, giver_U in enumerate(self.giver_QU):
            content = f"{seed}\n{number}\n{fingerprint}"
            generator = torch.Generator()
            generator.manual_seed(int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big"))
            giver_U[moved_M] = moved_M[torch.randperm(self.documents, generator=generator)]
        self.label_QU = self.found.label_U[self.giver_QU]
        self._begin_U = self.found.tokens_U.cumsum(0) - self.found.tokens_U
        self._next = 0

    def batch(self, batch: Batch, tokens: Tokens) -> list[Tokens]:
        """The tokens of the data's next batch with their shuffled labels and scores, for each permutation.

        Args:
            batch: the next batch in the data's order.
            tokens: the counted tokens of the batch.
        """
        if not self.count:
            return []
        sequences = slice(self._next, self._next + len(batch.document_B))
        self._next = sequences.stop
        counted_BT = torch.ones(batch.input_ids_BT.shape, dtype=torch.bool)
        if tokens.chosen_BT is not None:
            counted_BT = tokens.chosen_BT.cpu()
        row_X = counted_BT.nonzero()[:, 0]
        document_X = self.found.document_S[sequences][row_X]
        device = tokens.label_X.device
        shuffled = []
        for label_U, giver_U in zip(self.label_QU, self.giver_QU, strict=True):
            score_X = None
            if self.found.score_X is not None:
                giver_X = giver_U[document_X]
                place_X = self.found.first_S[sequences][row_X] + (counted_BT.cumsum(1) - 1)[counted_BT]
                place_X = self._begin_U[giver_X] + place_X % self.found.tokens_U[giver_X]
                score_X = self.found.score_X[place_X].to(device)
            shuffled.append(tokens._replace(label_X=label_U[document_X].to(device), score_X=score_X))
        return shuffled

    def notes(self) -> dict[str, int]:
        """Entry for the provenance of statistics."""
        return {"count": self.count, "seed": self.seed, "documents": self.documents}

    def counts(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, sequences and documents of each label under one permutation, (C,) int64 each."""
        label_U = self.label_QU[number]
        one_U = torch.ones_like(label_U)
        tokens_C, sequences_C, documents_C = (
            torch.zeros(self.num_labels, dtype=torch.int64).index_add_(0, label_U, of_U)
            for of_U in (self.found.tokens_U, self.found.sequences_U, one_U)
        )
        return tokens_C, sequences_C, documents_C
