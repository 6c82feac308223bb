"""Exact sums of expert weights a label, streamed through hooks on the routers.

The weight of expert (i, j) at a token is `w[i,j] = sum_h g1[h,i] * g2[h,j]`. Summed over the tokens of a label that is
one matrix product a routing group, `G1^T G2` with token and head as the inner dimension, so no token's E x E weights
are ever built. Dims as in docs/architecture.md, and C for labels.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from monet.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from monet.eval.inputs import Batch, LabelledData
from monet.eval.loading import (
    DType,
    check_batch_size,
    evaluating,
    load_model,
    mask_digest,
    open_windows,
    provenance_now,
    vocab_size,
    windows_bar,
)
from monet.files import atomic_path

if TYPE_CHECKING:
    from monet.modeling_monet import MonetPreTrainedModel

FORMAT = "monet-expert-statistics/1"


@dataclass(frozen=True)
class ExpertStatistics:
    """Summed expert weights over labelled text, for every routing group and expert.

    Args:
        labels: names along C.
        sums_CREE: float64 on the CPU, sum over the label's tokens of `sum_h g1[h,i] * g2[h,j]`; no unit.
        tokens_C: int64, tokens summed over, pads excluded.
        windows_C: int64, sequences they came in.
        documents_C: int64, documents they came from: runs of windows that begin in one document.
        model_fingerprint: of the model that routed.
        provenance: how it was made; `parts` names the passes that were added up.
    """

    labels: list[str]
    sums_CREE: Tensor
    tokens_C: Tensor
    windows_C: Tensor
    documents_C: Tensor
    model_fingerprint: str
    provenance: dict[str, Any]

    def means(self) -> Tensor:
        """Mean expert weight a token of each label, (C, R, E, E) float64; each sums to H over the experts of a group.

        Raises:
            DataError: a label without a token has no mean.
        """
        empty = [label for label, tokens in zip(self.labels, self.tokens_C.tolist(), strict=True) if tokens == 0]
        if empty:
            raise DataError(
                f"no token of {', '.join(map(repr, empty))} in these statistics; give the domain more documents, "
                "or raise the share of the identification split when preparing the data"
            )
        return self.sums_CREE / self.tokens_C[:, None, None, None]

    def merge(self, other: ExpertStatistics) -> ExpertStatistics:
        """Statistics over both passes; adding parts of a corpus gives what one pass over it gives.

        Raises:
            CheckpointError: another model, other labels or sizes, or a part that both already hold.
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
        mine, theirs = self.provenance.get("parts", []), other.provenance.get("parts", [])
        if shared := [part for part in mine if part in theirs]:
            raise CheckpointError(f"both statistics hold the part {shared[0]}; its tokens would count twice")
        return ExpertStatistics(
            labels=self.labels,
            sums_CREE=self.sums_CREE + other.sums_CREE,
            tokens_C=self.tokens_C + other.tokens_C,
            windows_C=self.windows_C + other.windows_C,
            documents_C=self.documents_C + other.documents_C,
            model_fingerprint=self.model_fingerprint,
            provenance={**self.provenance, **provenance_now(), "parts": mine + theirs},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with labels and provenance in its header; whole or not at all."""
        from safetensors.torch import save_file

        tensors = {
            "sums": self.sums_CREE.contiguous(),
            "tokens": self.tokens_C,
            "windows": self.windows_C,
            "documents": self.documents_C,
        }
        header = {
            "format": FORMAT,
            "labels": json.dumps(self.labels),
            "model_fingerprint": self.model_fingerprint,
            "provenance": json.dumps(self.provenance),
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: MonetPreTrainedModel | None = None) -> ExpertStatistics:
        """Read a file that `save` wrote.

        Args:
            path: safetensors file.
            model: if given, statistics of another model are refused.

        Raises:
            CheckpointError: missing, unreadable or inconsistent file, or another model's statistics.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise CheckpointError(f"{path}: no expert statistics ({FORMAT}); write them with `monet stats`")
                tensors = {name: file.get_tensor(name) for name in ("sums", "tokens", "windows", "documents")}
            labels, provenance = json.loads(header["labels"]), json.loads(header["provenance"])
            fingerprint = header["model_fingerprint"]
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; write it with `monet stats`") from None
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path}: unreadable statistics ({error!r}); run `monet stats` again") from None
        sums = tensors.pop("sums")
        square = sums.dim() == 4 and sums.dtype == torch.float64 and sums.shape[2] == sums.shape[3]
        counted = all(count.shape == (len(labels),) and count.dtype == torch.int64 for count in tensors.values())
        if not (square and counted and sums.shape[0] == len(labels)):
            raise CheckpointError(f"{path}: sums {tuple(sums.shape)} {sums.dtype} do not fit {len(labels)} labels")
        if not bool(torch.isfinite(sums).all()) or bool((sums < 0).any()):
            raise CheckpointError(f"{path}: sums hold NaN, infinite or negative values; run `monet stats` again")
        if model is not None and (found := model.fingerprint()) != fingerprint:
            raise CheckpointError(
                f"{path} belongs to model {fingerprint}, not to this one ({found}); collect them anew"
            )
        return cls(labels, sums, tensors["tokens"], tensors["windows"], tensors["documents"], fingerprint, provenance)


@contextlib.contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Float32 products as float32: no autocast, no TF32, whatever the caller set."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class _Accumulator:
    """Adds up what the routers give while a batch is set; used as hooks of one pass."""

    def __init__(self, num_labels: int, num_groups: int, num_keys: int, device: torch.device) -> None:
        # MPS has no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        shape = (num_labels, num_groups, num_keys, num_keys)
        self.sums_CREE = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.tokens_of_label: dict[int, Tensor | None] = {}

    def start(self, batch: Batch, device: torch.device) -> None:
        """Say which tokens of the coming forward belong to which label; None where all of them do."""
        self.tokens_of_label = {}
        for label in batch.label_B.unique().tolist():
            chosen_BT = (batch.label_B == label)[:, None].expand_as(batch.input_ids_BT)
            if batch.attention_mask_BT is not None:
                chosen_BT = chosen_BT & (batch.attention_mask_BT != 0)
            self.tokens_of_label[label] = None if bool(chosen_BT.all()) else chosen_BT.to(device)

    def add(self, group: int, output: Any) -> None:
        """Forward hook of the group's router: one product a label, float32 inside a batch, float64 across batches."""
        g1_BTHE, g2_BTHE = output.g1_BTHE.detach().float(), output.g2_BTHE.detach().float()
        for label, chosen_BT in self.tokens_of_label.items():
            g1_XE, g2_XE = (
                (g_BTHE if chosen_BT is None else g_BTHE[chosen_BT.to(g_BTHE.device)]).reshape(-1, g_BTHE.shape[-1])
                for g_BTHE in (g1_BTHE, g2_BTHE)
            )
            with _full_float32(g1_XE.device):
                sums_EE = g1_XE.T @ g2_XE
            self.finite &= torch.isfinite(sums_EE).all().to(self.finite.device)
            self.sums_CREE[label, group] += sums_EE.to(self.device, torch.float64)


def collect(
    model: MonetPreTrainedModel, data: LabelledData, *, batch_size: int = 8, progress: bool = True
) -> ExpertStatistics:
    """Sum every expert's weight over the tokens of every label, in one pass.

    Memory beside the model's own is (C, R, E, E) float64, however much text there is. The result does not depend on
    the batch size or the padding side beyond float32 rounding within a batch.

    Args:
        model: a Monet model (with or without head); run in eval mode, its mode is restored.
        data: labelled sequences: `PreparedWindows` for a folder of `monet data prepare`, or `LabelledSequences`.
        batch_size: sequences a forward.
        progress: show a bar on standard error.

    Raises:
        ConfigError: batch_size below 1.
        DataError: no token at all, or an id beyond the model's vocabulary.
        NonFiniteError: a router gave NaN or infinite probabilities; the first window of the batch is named.
    """
    check_batch_size(batch_size)
    routers = model.routers()
    device = model.device
    num_labels = len(data.labels)
    total = _Accumulator(num_labels, len(routers), cast(int, model.config.moe_experts), device)
    tokens_C, windows_C, documents_C = (torch.zeros(num_labels, dtype=torch.int64) for _ in range(3))
    last_document: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        bar = stack.enter_context(windows_bar(data.num_windows, "routing statistics", progress))
        for group, router in enumerate(routers):
            handle = router.register_forward_hook(lambda _, __, output, group=group: total.add(group, output))
            stack.callback(handle.remove)
        for batch in data.batches(batch_size):
            batch.check_vocabulary(vocab_size(model))
            total.start(batch, device)
            mask_BT = batch.attention_mask_BT
            model.base_model(
                input_ids=batch.input_ids_BT.to(device),
                attention_mask=None if mask_BT is None else mask_BT.to(device),
                use_cache=False,
            )
            if not bool(total.finite):
                raise NonFiniteError(
                    f"routing probabilities are not finite in the batch of windows {batch.index_B.tolist()} "
                    f"(document {batch.document_B[0]}); check the checkpoint's weights, or load it as float32"
                )
            length_B = batch.num_tokens_B
            for label, length, document in zip(
                batch.label_B.tolist(), length_B.tolist(), batch.document_B, strict=True
            ):
                tokens_C[label] += length
                windows_C[label] += 1
                documents_C[label] += last_document.get(label) != document
                last_document[label] = document
            bar.update(len(batch.document_B))
    if not int(tokens_C.sum()):
        raise DataError(f"no text to collect statistics from: {data.description}; prepare a larger split")
    part = {"data_fingerprint": data.fingerprint, **data.description, "stored_mask": mask_digest(model.expert_mask)}
    return ExpertStatistics(
        labels=list(data.labels),
        sums_CREE=total.sums_CREE.cpu(),
        tokens_C=tokens_C,
        windows_C=windows_C,
        documents_C=documents_C,
        model_fingerprint=model.fingerprint(),
        provenance={**provenance_now(), "parts": [part]},
    )


def run(
    model: str,
    data: Path,
    out: Path,
    split: str = "identify",
    seq_len: int | None = None,
    max_windows: int | None = None,
    domains: list[str] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: DType = "auto",
    progress: bool = True,
) -> None:
    """Sum every expert's routing weight per domain of labelled text, exactly and in one pass.

    Writes one file of sums, for `monet select` to choose each domain's experts from.

    Args:
        model: Hugging Face folder or name of a Monet model.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        out: file to write; an earlier one is replaced.
        split: split of DATA to read; evaluate masks on another.
        seq_len: tokens a window; without it the most the model was made for.
        max_windows: windows a domain, evenly spread over its text; without it all.
        domains: domains of DATA to take; without it all.
        batch_size: windows a forward; it does not change the result beyond float32 rounding.
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps that of the files.
        progress: show a bar on standard error.

    Raises:
        CheckpointError: no such model.
        ConfigError: an option out of range, or OUT is a folder.
        DataError: no such split, a domain without a window in it, or another tokenizer's data.
        NonFiniteError: routing probabilities that are NaN or infinite.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, e.g. {out / 'statistics.safetensors'}")
    loaded = load_model(model, device, dtype)
    windows = open_windows(data, split, loaded, seq_len, max_windows, domains)
    statistics = collect(loaded, windows, batch_size=batch_size, progress=progress)
    statistics.save(out)
    for label, tokens, documents in zip(
        statistics.labels, statistics.tokens_C.tolist(), statistics.documents_C.tolist(), strict=True
    ):
        print(f"{label}: {tokens:,} tokens of {documents:,} documents")
    print(f"statistics: {out}")
