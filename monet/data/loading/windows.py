"""Cuts token shards into windows of T+1 tokens with a domain label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from monet.data.storage.shards import TokenShards
from monet.errors import ConfigError, DataError


class WindowDataset(Dataset[dict[str, Any]]):
    """Windows of one split, domain by domain.

    Window w of a domain holds tokens w*T .. w*T+T of its stream. Neighbouring windows share one token, so every token
    except the first is predicted exactly once. Tokens after the last whole window are left out and counted. A window
    can hold several documents, separated by eos, but never two domains.

    Args:
        prepared: a prepared folder, or one that is already open.
        split: "train", "validation", "identify" or "evaluate".
        seq_len: T, tokens predicted in a window, at least 1.
        domains: names to take, in this order; None takes all. Labels always number all domains of the folder.
        document_mask: give each window position ids that restart at every document.
    Attributes:
        shards: the open folder.
        domains: names of all domains of the folder; `domain` of a window is an index into this list.
        chosen: the domains in this dataset.
        counts: number of windows of each chosen domain.
        dropped_tokens: tokens left out at the end of each chosen domain.
    Raises:
        DataError: the split or domain does not exist, or a domain has no whole window; see also `TokenShards`.
        ConfigError: seq_len is below 1.
    """

    def __init__(
        self,
        prepared: str | Path | TokenShards,
        split: str,
        seq_len: int,
        domains: Sequence[str] | None = None,
        *,
        document_mask: bool = False,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len {seq_len} must be at least 1")
        self.shards = prepared if isinstance(prepared, TokenShards) else TokenShards(prepared)
        self.split = split
        self.seq_len = seq_len
        self.document_mask = document_mask
        self.domains = self.shards.domains
        self.chosen = list(self.domains if domains is None else domains)
        if not self.chosen:
            raise ConfigError("domains []: name at least one domain, or leave domains out to take all")
        self._streams = [self.shards.stream(split, domain) for domain in self.chosen]
        self._labels = [self.domains.index(domain) for domain in self.chosen]
        self.counts = [max(stream.num_tokens - 1, 0) // seq_len for stream in self._streams]
        self.dropped_tokens = [
            max(stream.num_tokens - 1, 0) - count * seq_len
            for stream, count in zip(self._streams, self.counts, strict=True)
        ]
        for domain, stream, count in zip(self.chosen, self._streams, self.counts, strict=True):
            if count == 0:
                raise DataError(
                    f"{self.shards.folder}: split {split!r} of domain {domain!r} has {stream.num_tokens} tokens, a "
                    f"window of seq_len {seq_len} needs {seq_len + 1}; add text, shorten seq_len or leave it out"
                )
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows_of(self, domain: str) -> range:
        """Return the indices of this domain's windows."""
        place = self.chosen.index(domain)
        end = int(self._ends[place])
        return range(end - self.counts[place], end)

    def locate(self, index: int) -> tuple[str, int, int]:
        """Return the domain, the first token in the domain's stream, and the number of that token's document."""
        place, start = self._place(index)
        return self.chosen[place], start, self._streams[place].document_at(start)

    def document_name(self, index: int) -> str:
        """Return where the text at the window's start was read."""
        place, start = self._place(index)
        return self._streams[place].document_name(self._streams[place].document_at(start))

    def document_sources(self, indices: Iterable[int]) -> list[str | None]:
        """Return, for each window, the source named by the document at its start; None if it is not known."""
        begun = [(place, self._streams[place].document_at(start)) for place, start in map(self._place, indices)]
        found = {
            place: self._streams[place].document_sources(document for own, document in begun if own == place)
            for place in {place for place, _ in begun}
        }
        return [found[place][document] for place, document in begun]

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        place = int(np.searchsorted(self._ends, index, side="right"))
        return place, (index - int(self._ends[place]) + self.counts[place]) * self.seq_len

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window.

        Returns:
            input_ids: int64 (T + 1,); inputs are [:-1], labels are [1:].
            domain: index of the domain in `domains`.
            index: the window's number.
            document: number, inside the split and domain, of the document that holds the first token.
            position_ids: int64 (T,), positions of the inputs, only with `document_mask`: 0 at the window's start and at
                the start of each document, and 1 more at each following token.
        Raises:
            DataError: an id is outside the vocabulary; names file, offset and id.
        """
        place, start = self._place(index)
        stream = self._streams[place]
        ids = stream.read(start, start + self.seq_len + 1)
        window = {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "domain": self._labels[place],
            "index": index,
            "document": stream.document_at(start),
        }
        if self.document_mask:
            begins = np.zeros(self.seq_len, dtype=np.int64)
            starts = stream.starts_within(start, start + self.seq_len) - start
            begins[starts] = starts
            window["position_ids"] = torch.from_numpy(np.arange(self.seq_len) - np.maximum.accumulate(begins))
        return window


def collate(windows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack windows: input_ids (B, T + 1), domain, index and document (B,), position_ids (B, T) if any, all int64."""
    batch = {key: torch.tensor([window[key] for window in windows]) for key in ("domain", "index", "document")}
    if "position_ids" in windows[0]:
        batch["position_ids"] = torch.stack([window["position_ids"] for window in windows])
    return {"input_ids": torch.stack([window["input_ids"] for window in windows]), **batch}
