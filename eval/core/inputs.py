"""The input of an evaluation: labelled sequences in batches, and the model, both checked before use.

A suite needs a `LabelledData`. `PreparedWindows` reads a folder of `monet data prepare`. `LabelledSequences` holds
token ids in memory. docs/architecture.md explains the dims.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from monet.data.loading.windows import WindowDataset, collate
from monet.data.storage.shards import TokenShards
from monet.errors import ConfigError, DataError
from monet.parts import check_shard

IGNORED = -100


class Batch(NamedTuple):
    """Sequences of one forward pass.

    Args:
        input_ids_BT: int64 token ids, including pads.
        attention_mask_BT: int64, 1 at tokens and 0 at pads; None without pads.
        targets_BT: int64, the token after each position; -100 at positions without a score.
        label_B: int64, index into the data's `labels`.
        index_B: int64, number of the sequence; with the data's fingerprint it identifies one sequence.
        document_B: the document in which each sequence begins.
        score_BT: float64, a number for every token, and any number at pads; None for text without scores.
        position_ids_BT: int64, position of each token in its document, for rows whose documents do not attend to each
            other; None if each row is one text.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor | None
    targets_BT: Tensor
    label_B: Tensor
    index_B: Tensor
    document_B: list[str]
    score_BT: Tensor | None = None
    position_ids_BT: Tensor | None = None

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Arguments of a forward pass over these sequences: tensors on the device, and no cache.

        Raises:
            DataError: the batch has pads and document positions, which the model cannot keep apart together.
        """
        if self.attention_mask_BT is not None and self.position_ids_BT is not None:
            raise DataError("a batch with document positions has pads; give sequences of one length, or no positions")
        given = {"input_ids": self.input_ids_BT, "attention_mask": self.attention_mask_BT}
        if self.position_ids_BT is not None:
            given["position_ids"] = self.position_ids_BT
        moved = {name: None if value is None else value.to(device) for name, value in given.items()}
        return {**moved, "use_cache": False}

    @property
    def num_tokens_B(self) -> Tensor:
        """Number of tokens of each sequence, without pads."""
        if self.attention_mask_BT is None:
            return torch.full((len(self.input_ids_BT),), self.input_ids_BT.shape[1], dtype=torch.int64)
        return self.attention_mask_BT.ne(0).sum(dim=1)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse ids for which the model has no embedding.

        Raises:
            DataError: an id is too large; the message names the first such id, its window and document.
        """
        wrong_BT = (self.input_ids_BT < 0) | (self.input_ids_BT >= vocab_size) | (self.targets_BT >= vocab_size)
        if not bool(wrong_BT.any()):
            return
        row, column = wrong_BT.nonzero()[0].tolist()
        token, target = int(self.input_ids_BT[row, column]), int(self.targets_BT[row, column])
        found = target if 0 <= token < vocab_size else token
        raise DataError(
            f"token id {found} in window {int(self.index_B[row])} (document {self.document_B[row]}) is outside the "
            f"model's vocabulary of {vocab_size}; prepare the text with this model's tokenizer"
        )


class LabelledData(Protocol):
    """Labelled sequences that can be read many times in the same order."""

    @property
    def labels(self) -> list[str]: ...

    @property
    def num_windows(self) -> int: ...

    @property
    def description(self) -> dict[str, Any]:
        """Where the sequences come from and how they were cut, JSON-able."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal sequences with equal numbers; part of the provenance and of the keys of kept results."""
        ...

    def batches(self, batch_size: int) -> Iterator[Batch]: ...

    def window_sources(self) -> dict[str, list[str | None]]:
        """Sources by label: the source of the document in which each window begins, in the order of `batches`.

        A source is None if it is not known. A label without a window has an empty list or is left out.
        """
        ...

    def only(self, labels: Sequence[str]) -> LabelledData:
        """The sequences of some labels, with unchanged label numbers."""
        ...


def check_labels(wanted: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse labels that the data do not have.

    Raises:
        DataError: a label is missing; the message names it and the labels that exist.
    """
    if missing := [label for label in wanted if label not in labels]:
        raise DataError(
            f"no text labelled {', '.join(map(repr, missing))} in the data; choose from its labels {list(labels)}"
        )


def _dealt(numbered: Sequence[tuple[int, Hashable]], index: int, count: int) -> list[int]:
    """Numbers of the sequences in this part. Runs of one document go to the parts in turn."""
    dealt, run, last = [], -1, object()
    for number, document in numbered:
        if document != last:
            run, last = run + 1, document
        if run % count == index:
            dealt.append(number)
    return dealt


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class LabelledSequences:
    """Token ids in memory, padded batch by batch.

    Args:
        labels: names of the labels.
        sequences: token ids, each of at least two tokens.
        label_of: index into `labels` for every sequence.
        padding_side: side of the pads.
        pad_id: id at pads; the model ignores it.
        kept: numbers of the sequences that `batches` gives; None gives all.
        scores: a number for every token of every sequence; None for text without scores.
        documents: name of the document to which each sequence belongs. None makes each sequence a separate document,
            named by its number.
        sources: name of the source from which each sequence's document was cut; None if it is not known.
        notes: further notes on the origin for the description, JSON-able.
        described: the description, for a part of other sequences; None makes one from the content.

    Raises:
        DataError: lengths differ, a label number is out of range, a sequence is too short for a prediction, or a score
            is not finite.
    """

    labels: list[str]
    sequences: list[list[int]]
    label_of: list[int]
    padding_side: Literal["left", "right"] = "right"
    pad_id: int = 0
    kept: list[int] | None = None
    scores: list[list[float]] | None = None
    documents: list[str] | None = None
    sources: list[str] | None = None
    notes: dict[str, Any] | None = None
    described: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.sequences) != len(self.label_of):
            raise DataError(f"{len(self.sequences)} sequences but {len(self.label_of)} labels for them")
        for name in ("scores", "documents", "sources"):
            if (given := getattr(self, name)) is not None and len(given) != len(self.sequences):
                raise DataError(f"{len(self.sequences)} sequences but {name} for {len(given)}; each sequence needs one")
        for number, (sequence, scores) in enumerate(zip(self.sequences, self.scores or [], strict=False)):
            if len(sequence) != len(scores) or not all(map(math.isfinite, scores)):
                raise DataError(
                    f"sequence {number} has {len(sequence)} tokens and the scores {scores[:4]}...; give a finite score "
                    "for every token"
                )
        for number, (sequence, label) in enumerate(zip(self.sequences, self.label_of, strict=True)):
            if len(sequence) < 2 or not 0 <= label < len(self.labels):
                raise DataError(
                    f"sequence {number} has {len(sequence)} tokens and label {label}; "
                    f"it needs at least 2 tokens and a label below {len(self.labels)}"
                )

    @property
    def _order(self) -> list[int]:
        return list(range(len(self.sequences))) if self.kept is None else self.kept

    @property
    def num_windows(self) -> int:
        return len(self._order)

    @property
    def description(self) -> dict[str, Any]:
        """Where the sequences come from, with a hash of the content."""
        return self._described if self.described is None else self.described

    @cached_property
    def _described(self) -> dict[str, Any]:
        content: list[Any] = [[self.label_of[i], self.sequences[i]] for i in self._order]
        if self.scores is not None:
            content.append([self.scores[i] for i in self._order])
        found = {"source": "sequences", "sequences": len(self._order), "labels": self.labels, "sha256": _hash(content)}
        return found | (self.notes or {})

    @property
    def fingerprint(self) -> str:
        return _hash(self.description if self.kept is None else {**self.description, "kept": self.kept})

    def only(self, labels: Sequence[str]) -> LabelledSequences:
        """The sequences of some labels, with unchanged label numbers."""
        check_labels(labels, self.labels)
        wanted = {self.labels.index(label) for label in labels}
        return replace(self, kept=[i for i in self._order if self.label_of[i] in wanted], described=None)

    def shard(self, index: int, count: int) -> LabelledSequences:
        """One of `count` parts that together are the whole. A document is never divided."""
        check_shard(index, count)
        dealt = _dealt([(i, self._document(i)) for i in self._order], index, count)
        # The whole's hash shows that parts belong to one whole. A part of a part is described by its own hash.
        whole = self._described if "shard" in self.description else self.description
        return replace(self, kept=dealt, described={**whole, "shard": [index, count]})

    def window_sources(self) -> dict[str, list[str | None]]:
        """The source of each sequence by label; None if it is not known."""
        found: dict[str, list[str | None]] = {label: [] for label in self.labels}
        for i in self._order:
            found[self.labels[self.label_of[i]]].append(None if self.sources is None else self.sources[i])
        return found

    def _document(self, number: int) -> str:
        return str(number) if self.documents is None else self.documents[number]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, self.num_windows, batch_size):
            chosen = self._order[start : start + batch_size]
            length = max(len(self.sequences[i]) for i in chosen)
            ids_BT = torch.full((len(chosen), length), self.pad_id, dtype=torch.int64)
            mask_BT = torch.zeros_like(ids_BT)
            targets_BT = torch.full_like(ids_BT, IGNORED)
            score_BT = None if self.scores is None else torch.zeros(ids_BT.shape, dtype=torch.float64)
            for row, i in enumerate(chosen):
                tokens = torch.tensor(self.sequences[i], dtype=torch.int64)
                begin = length - len(tokens) if self.padding_side == "left" else 0
                end = begin + len(tokens)
                ids_BT[row, begin:end] = tokens
                mask_BT[row, begin:end] = 1
                targets_BT[row, begin : end - 1] = tokens[1:]
                if score_BT is not None and self.scores is not None:
                    score_BT[row, begin:end] = torch.tensor(self.scores[i], dtype=torch.float64)
            label_B = torch.tensor([self.label_of[i] for i in chosen])
            names = [self._document(i) for i in chosen]
            padding = None if bool(mask_BT.all()) else mask_BT
            yield Batch(ids_BT, padding, targets_BT, label_B, torch.tensor(chosen), names, score_BT)


class PreparedWindows:
    """Windows of one split of a folder from `monet data prepare`, domain by domain.

    Args:
        prepared: the folder, or an open one.
        split: name of the split, for example "identify" or "evaluate".
        seq_len: input tokens of a window. The same number is predicted, and no token counts twice.
        max_windows: windows of each domain, evenly spread over its text; None takes all.
        domains: the labels, in this order; None takes all domains of the folder.
        document_mask: no attention between the documents of a window, and positions counted from each document's
            start. Use it for a model that was trained this way; its configuration has `document_mask`.

    Raises:
        DataError: the folder is not prepared data, or lacks the split or domain, or a domain has no window.
        ConfigError: seq_len or max_windows is below 1, or `domains` is empty.
    """

    def __init__(
        self,
        prepared: str | Path | TokenShards,
        split: str,
        seq_len: int,
        max_windows: int | None = None,
        domains: Sequence[str] | None = None,
        document_mask: bool = False,
    ) -> None:
        if max_windows is not None and max_windows < 1:
            raise ConfigError(f"max_windows {max_windows} must be at least 1; leave it out for all windows")
        self.dataset = WindowDataset(prepared, split, seq_len, domains, document_mask=document_mask)
        self.shards = self.dataset.shards
        self.labels: list[str] = self.dataset.chosen
        self.description: dict[str, Any] = {
            "source": "prepared",
            "content": self.shards.fingerprint,
            "split": split,
            "seq_len": seq_len,
            "max_windows": max_windows,
            "domains": self.labels,
            "document_mask": document_mask,
        }
        self._windows = {label: _spread(self.dataset.windows_of(label), max_windows) for label in self.labels}

    @property
    def num_windows(self) -> int:
        """Number of windows that `batches` gives."""
        return sum(map(len, self._windows.values()))

    @property
    def fingerprint(self) -> str:
        """Equal for equal windows of equal text; independent of the place of the folder."""
        return _hash(self.description)

    def only(self, labels: Sequence[str]) -> PreparedWindows:
        """The windows of some labels, with unchanged label numbers."""
        check_labels(labels, self.labels)
        part = copy.copy(self)
        part.description = {**self.description, "only": list(labels)}
        part._windows = {label: self._windows[label] for label in labels}
        return part

    def shard(self, index: int, count: int) -> PreparedWindows:
        """One of `count` parts that together are the whole. Windows that begin in one document stay together."""
        check_shard(index, count)
        part = copy.copy(self)
        # Part i of n of part j of m is part j + i m of n m of the whole.
        first, step = self.description.get("shard", (0, 1))
        part.description = {**self.description, "shard": [first + index * step, count * step]}
        part._windows = {
            label: _dealt([(window, self.dataset.locate(window)[2]) for window in windows], index, count)
            for label, windows in self._windows.items()
        }
        return part

    def window_sources(self) -> dict[str, list[str | None]]:
        """By label, the source of the document in which each window begins; None if the folder does not record it."""
        return {label: self.dataset.document_sources(windows) for label, windows in self._windows.items()}

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Windows in the order of the text; a batch may span two domains."""
        order = [(window, self.labels.index(label)) for label, chosen in self._windows.items() for window in chosen]
        for start in range(0, len(order), batch_size):
            windows, labels = zip(*order[start : start + batch_size], strict=True)
            rows = collate([self.dataset[window] for window in windows])
            window_BX = rows["input_ids"]
            documents = [str(document) for document in rows["document"].tolist()]
            yield Batch(
                window_BX[:, :-1], None, window_BX[:, 1:], torch.tensor(labels), rows["index"], documents,
                position_ids_BT=rows.get("position_ids"),
            )  # fmt: skip


def _spread(windows: range, at_most: int | None) -> Sequence[int]:
    """At most `at_most` of the windows, evenly spread."""
    if at_most is None or len(windows) <= at_most:
        return windows
    return [windows[i * len(windows) // at_most] for i in range(at_most)]
