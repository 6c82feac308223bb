"""Exact sums of expert weights for each label, and other quantities of the same pass: file format and merging.

The weight of expert (i, j) at a token is `w[i,j] = sum_h g1[h,i] * g2[h,j]`. docs/architecture.md explains the dims; C
stands for labels.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from monet.errors import CheckpointError, DataError
from monet.eval.attribution.statistics.extras import EXTRAS, Coactivation, Extra, Firing, Maxima, ScoreMoments
from monet.eval.attribution.statistics.prompt_hashes import without_hashes
from monet.eval.core.loading import provenance_now
from monet.eval.core.text_overlap import common_sequences, same_source, shares_text, thinned
from monet.files import atomic_path
from monet.json_text import parse_json

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetPreTrainedModel

FORMAT = "monet-expert-statistics/2"
# Files of the first format have no permuted labels; everything else is the same.
_READ = ("monet-expert-statistics/1", FORMAT)
_SUMS = ("sums", "tokens", "windows", "documents")
_PERMUTED = "permuted"


@dataclass(frozen=True)
class ExpertStatistics:
    """Summed expert weights over labelled text, for every routing group and expert.

    Args:
        labels: names along C.
        sums_CREE: float64 on the CPU, sum over the label's tokens of `sum_h g1[h,i] * g2[h,j]`; no unit.
        tokens_C: int64, number of summed tokens, without pads.
        windows_C: int64, number of sequences of these tokens.
        documents_C: int64, number of documents of these tokens: runs of windows that begin in one document.
        model_fingerprint: fingerprint of the model that routed.
        provenance: how the statistics were made; `parts` names the passes that were added up.
        scores, firing, maxima, coactivation: further quantities; None if they were not requested.
        permuted: the same statistics under permuted labels, without maxima and co-activation. Every document took the
            label and the scores of another one (`monet.eval.attribution.statistics.shuffle`). Empty if nothing was
            permuted.
    """

    labels: list[str]
    sums_CREE: Tensor
    tokens_C: Tensor
    windows_C: Tensor
    documents_C: Tensor
    model_fingerprint: str
    provenance: dict[str, Any]
    scores: ScoreMoments | None = None
    firing: Firing | None = None
    maxima: Maxima | None = None
    coactivation: Coactivation | None = None
    permuted: list[ExpertStatistics] = field(default_factory=list)

    @property
    def extras(self) -> dict[str, Extra]:
        """Collected quantities other than the sums, by name."""
        found = {name: getattr(self, name) for name in EXTRAS}
        return {name: extra for name, extra in found.items() if extra is not None}

    def means(self) -> Tensor:
        """Mean expert weight per token for each label, (C, R, E, E) float64; the means of a group's experts sum to H.

        Raises:
            DataError: a label has no token, so it has no mean.
        """
        empty = [label for label, tokens in zip(self.labels, self.tokens_C.tolist(), strict=True) if tokens == 0]
        if empty:
            raise DataError(
                f"no token of {', '.join(map(repr, empty))} in these statistics; give the domain more documents, "
                "or raise the share of the identification split when preparing the data"
            )
        return self.sums_CREE / self.tokens_C[:, None, None, None]

    def correlations(self) -> Tensor:
        """Pearson's r of every expert's weight with the tokens' score, (R, E, E) float64.

        NaN if there is nothing to correlate: for an expert whose weight never varies (never active, say), or for all
        experts if the score never varies.

        Raises:
            DataError: the statistics were collected without scores.
        """
        if self.scores is None:
            raise DataError("these statistics hold no scores; collect them with `monet stats --scores FILE.jsonl`")
        return self.scores.correlations(self.sums_CREE.sum(0))

    def strongest(self, count: int) -> Tensor:
        """The experts of each routing group with the largest weights summed over all tokens, (R, count) int64 ids.

        Ties go to the lowest ids. A group with fewer than `count` experts gives all of them.
        """
        sums_RN = self.sums_CREE.sum(0).flatten(1)
        return sums_RN.sort(descending=True, stable=True).indices[:, :count]

    def merge(self, other: ExpertStatistics) -> ExpertStatistics:
        """The sum of both passes; the sum over the parts of a corpus equals one pass over the corpus.

        Permuted statistics are added too, up to the smaller number of permutations. Each part permuted its own
        documents, so the sum is a permutation within parts. It is a valid comparison, but a weaker one: if a part has
        few documents, or nearly only one label, its permuted labels are nearly its true labels.

        Raises:
            CheckpointError: another model or stored mask, other labels or sizes, other collected quantities, or text
                that is in both.
        """
        if self.model_fingerprint != other.model_fingerprint:
            raise CheckpointError(
                f"statistics of model {self.model_fingerprint} and of model {other.model_fingerprint} do not add up; "
                "collect both with one model"
            )
        if self.labels != other.labels or self.sums_CREE.shape != other.sums_CREE.shape:
            raise CheckpointError(
                f"statistics over labels {self.labels} {tuple(self.sums_CREE.shape)} and over {other.labels} "
                f"{tuple(other.sums_CREE.shape)} do not add up; collect both over the same labels"
            )
        extras, others = self.extras, other.extras
        if extras.keys() != others.keys():
            raise CheckpointError(
                f"statistics with {sorted(extras) or 'sums alone'} and with {sorted(others) or 'sums alone'} do not "
                "add up; collect both with the same options"
            )
        mine, theirs = self.provenance.get("parts", []), other.provenance.get("parts", [])
        if len({part.get("stored_mask") for part in [*mine, *theirs]}) > 1:
            raise CheckpointError(
                "statistics of one model with two stored masks do not add up, because removed experts change the "
                "routing of later layers; collect both under one mask"
            )
        if len({_excluded(part) for part in [*mine, *theirs]}) > 1:
            raise CheckpointError(
                "statistics that leave out different tokens do not add up; collect both with the same --exclude options"
            )
        if len({bool(part.get("document_mask")) for part in [*mine, *theirs]}) > 1:
            raise CheckpointError(
                "statistics with and without document masks do not add up; collect both with the same --document_mask"
            )
        _refuse_overlap(mine, theirs)
        merged: dict[str, Any] = {name: extra.merge(others[name], len(mine)) for name, extra in extras.items()}
        return ExpertStatistics(
            labels=self.labels,
            sums_CREE=self.sums_CREE + other.sums_CREE,
            tokens_C=self.tokens_C + other.tokens_C,
            windows_C=self.windows_C + other.windows_C,
            documents_C=self.documents_C + other.documents_C,
            model_fingerprint=self.model_fingerprint,
            provenance={**self.provenance, **provenance_now(), "parts": thinned(mine + theirs)},
            permuted=[one.merge(another) for one, another in zip(self.permuted, other.permuted, strict=False)],
            **merged,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file atomically, with labels and provenance in its header."""
        from safetensors.torch import save_file

        header = {
            "format": FORMAT,
            "labels": json.dumps(self.labels),
            "model_fingerprint": self.model_fingerprint,
            "provenance": json.dumps(self.provenance),
        }
        with atomic_path(path) as temporary:
            save_file(self._tensors(), temporary, metadata=header)

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of the file, by name."""
        tensors = {
            "sums": self.sums_CREE.contiguous(),
            "tokens": self.tokens_C,
            "windows": self.windows_C,
            "documents": self.documents_C,
        }
        for name, extra in self.extras.items():
            tensors.update({f"{name}.{key}": tensor for key, tensor in extra.tensors().items()})
        for number, one in enumerate(self.permuted):
            tensors.update({f"{_PERMUTED}.{number}.{key}": tensor for key, tensor in one._tensors().items()})
        return tensors

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: MonetPreTrainedModel | None = None) -> ExpertStatistics:
        """Read a file that `save` wrote.

        Args:
            path: safetensors file.
            model: if given, statistics of another model are refused.

        Raises:
            CheckpointError: the file is missing, unreadable or inconsistent, or belongs to another model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") not in _READ:
                    raise CheckpointError(f"{path}: not expert statistics ({FORMAT}); write them with `monet stats`")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            labels, provenance = (parse_json(header[name], f"{path}: {name}") for name in ("labels", "provenance"))
            fingerprint = header["model_fingerprint"]
            if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
                raise TypeError(f"labels {str(labels)[:60]}")
            if not isinstance(provenance, dict):
                raise TypeError(f"provenance {str(provenance)[:60]}")
            found = cls._of_tensors(tensors, labels, fingerprint, provenance)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; write it with `monet stats`") from None
        except CheckpointError as error:
            raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, DataError) as error:
            raise CheckpointError(f"{path}: unreadable statistics ({error!r}); run `monet stats` again") from None
        if model is not None and (now := model.fingerprint()) != fingerprint:
            raise CheckpointError(
                f"{path} belongs to model {fingerprint}, not to this one ({now}); collect them again with this model"
            )
        return found

    @classmethod
    def _of_tensors(
        cls, tensors: dict[str, Tensor], labels: list[str], fingerprint: str, provenance: dict[str, Any]
    ) -> ExpertStatistics:
        """Checked statistics from a file's tensors; raises KeyError, TypeError, ValueError or CheckpointError."""
        fields: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, rest = key.partition(".")
            fields.setdefault(name, {})[rest] = tensor
        sums, tokens, windows, documents = (fields[name][""] for name in _SUMS)
        counts = (tokens, windows, documents)
        square = sums.dim() == 4 and sums.dtype == torch.float64 and sums.shape[2] == sums.shape[3]
        counted = all(count.shape == (len(labels),) and count.dtype == torch.int64 for count in counts)
        if not (square and counted and sums.shape[0] == len(labels)):
            raise CheckpointError(f"sums {tuple(sums.shape)} {sums.dtype} do not fit {len(labels)} labels")
        if not bool(torch.isfinite(sums).all()) or bool((sums < 0).any()):
            raise CheckpointError("sums hold NaN, infinite or negative values; run `monet stats` again")
        collected: dict[str, Any] = {name: EXTRAS[name](**fields[name]) for name in EXTRAS if name in fields}
        for extra in collected.values():
            extra.check(*sums.shape[:3])
        shuffled: dict[int, dict[str, Tensor]] = {}
        for key, tensor in fields.get(_PERMUTED, {}).items():
            number, _, rest = key.partition(".")
            shuffled.setdefault(int(number), {})[rest] = tensor
        permuted = [cls._of_tensors(one, labels, fingerprint, {}) for _, one in sorted(shuffled.items())]
        if any(one.sums_CREE.shape != sums.shape or one.extras.keys() - collected.keys() for one in permuted):
            raise CheckpointError("permuted sums do not fit the other sums; run `monet stats` again")
        return cls(labels, sums, *counts, fingerprint, provenance, **collected, permuted=permuted)


def _excluded(part: dict[str, Any]) -> tuple[Any, ...]:
    """The tokens that a pass left out."""
    notes = part.get("excluded", {})
    return tuple(notes.get("ids", [])), notes.get("first", 0)


def _refuse_overlap(parts: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    """Raise CheckpointError if two passes read some of the same text."""
    for part, other in itertools.product(parts, others):
        if not shares_text(part, other):
            continue
        told = without_hashes(part)
        if same_source(part, other):
            raise CheckpointError(
                f"both statistics have text of the part {told}, so its tokens would count twice; merge the shards of "
                "one division of a source, or different domains of a source"
            )
        raise CheckpointError(
            f"both statistics have {common_sequences(part, other)} of the same sequences, so their tokens would count "
            "twice; remove these sequences from one text, or collect both texts in one pass. The part with these "
            f"sequences: {told}"
        )
