"""Next-token losses of every window under a mask, kept batch by batch so that a killed evaluation continues.

Dims: W windows in the order of the data.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from monet.errors import DataError, NonFiniteError
from monet.eval.core.bootstrap import Unit
from monet.eval.core.conditions import Condition
from monet.eval.core.inputs import IGNORED, Batch, LabelledData
from monet.eval.core.loading import evaluating, vocab_size, windows_bar
from monet.eval.core.store import ExampleStore, model_key

if TYPE_CHECKING:
    from monet.eval.core.intervention import Intervention

_LAYOUT = 2


@dataclass(frozen=True)
class WindowLosses:
    """The losses of a model on every window.

    Args:
        loss_sum_W: float64, sum of the next-token losses of the window's scored tokens, nats.
        tokens_W: int64, number of scored tokens.
        label_W: int64, index into the data's labels.
        document_W: int64, number of the document in which the window begins, counted from 0 in the order of the data.
        source_W: int64, number of that document's source, counted the same way; None if sources are not known.
    """

    loss_sum_W: NDArray[np.float64]
    tokens_W: NDArray[np.int64]
    label_W: NDArray[np.int64]
    document_W: NDArray[np.int64]
    source_W: NDArray[np.int64] | None = None

    def units_W(self, unit: Unit | None) -> NDArray[np.int64]:
        """Number of the unit to which each window belongs. None takes sources if they are known, else documents.

        Raises:
            DataError: `unit` is source, but the sources are not known.
        """
        if unit == "window":
            return np.arange(len(self.label_W))
        if unit == "document" or (unit is None and self.source_W is None):
            return self.document_W
        if self.source_W is None:
            raise DataError("unit source: the losses name no sources; draw documents (--unit document)")
        return self.source_W


def _loss_sums(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Summed losses of each sequence, float64. It reads one sequence at a time to keep float32 logits small."""
    return torch.stack(
        [
            F.cross_entropy(logits_TV.float(), targets_T, ignore_index=IGNORED, reduction="none").double().sum()
            for logits_TV, targets_T in zip(logits_BTV, targets_BT, strict=True)
        ]
    )


def losses_of(model: Any, batch: Batch, name: str, labels: list[str]) -> Tensor:
    """Summed losses of each sequence of a batch, float64 on the CPU."""
    batch.check_vocabulary(vocab_size(model))
    logits_BTV = model(**batch.inputs(model.device)).logits
    sums_B = _loss_sums(logits_BTV, batch.targets_BT.to(model.device)).cpu()
    if not bool(torch.isfinite(sums_B).all()):
        row = int((~torch.isfinite(sums_B)).nonzero()[0])
        raise NonFiniteError(
            f"loss {float(sums_B[row])} under mask {name!r} in window {int(batch.index_B[row])} "
            f"({labels[int(batch.label_B[row])]}, document {batch.document_B[row]}); "
            "check the checkpoint's weights, or load it as float32"
        )
    return sums_B


def window_losses(
    model: Any,
    mask: Intervention | None,
    data: LabelledData,
    *,
    batch_size: int = 8,
    name: str = "no mask",
    advance: Callable[[int], object] = lambda _: None,
    kept: ExampleStore | None = None,
) -> WindowLosses:
    """Score all windows under one mask.

    Args:
        model: the model; it runs in eval mode, and its mode is restored.
        mask: experts to remove, in addition to those of a mask stored in the model; None removes none.
        data: labelled sequences.
        batch_size: sequences in each forward pass.
        name: name of the mask, for messages.
        advance: called with the number of windows done since the last call.
        kept: sums of losses of finished windows, by number. A batch that it holds is not run. The losses of the other
            batches are added to it as they come. None keeps nothing.

    Raises:
        DataError: an id is beyond the model's vocabulary.
        CheckpointError: the mask belongs to another model.
        NonFiniteError: a loss is NaN or infinite; the message names mask, domain, window and document.
    """
    sums: list[Tensor] = []
    tokens: list[Tensor] = []
    labels: list[Tensor] = []
    documents: list[int] = []
    number_of_document: dict[tuple[int, str], int] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        if mask is not None:
            stack.enter_context(mask.applied_to(model))
        for batch in data.batches(batch_size):
            numbers = list(map(str, batch.index_B.tolist()))
            if kept is not None and all(number in kept for number in numbers):
                sums_B = torch.tensor([kept[number] for number in numbers], dtype=torch.float64)
            else:
                sums_B = losses_of(model, batch, name, data.labels)
                for number, loss_sum in zip(numbers, sums_B.tolist(), strict=True):
                    if kept is not None and number not in kept:
                        kept.put(number, loss_sum)
            sums.append(sums_B)
            tokens.append(batch.targets_BT.ne(IGNORED).sum(dim=1))
            labels.append(batch.label_B)
            for key in zip(batch.label_B.tolist(), batch.document_B, strict=True):
                documents.append(number_of_document.setdefault(key, len(number_of_document)))
            advance(len(batch.document_B))
    return WindowLosses(
        torch.cat(sums).numpy(), torch.cat(tokens).numpy(), torch.cat(labels).numpy(), np.array(documents, np.int64)
    )


class LossStore:
    """One file of window losses for each mask, under a name that hashes everything the numbers depend on.

    The losses of a batch are kept as soon as the batch is done, so a killed run continues with the next batch.

    Args:
        folder: folder of the files; created on the first write.
        model: the model that is scored.
        batch_size: sequences in each forward pass; part of the key, because it changes the last bits.

    Raises:
        ConfigError: a `with mask.applied_to(model)` block is open.
    """

    def __init__(self, folder: str | os.PathLike[str], model: Any, batch_size: int) -> None:
        self.folder = Path(folder)
        self.model = model
        self.batch_size = batch_size
        self.settings = {"layout": _LAYOUT, **model_key(model), "batch_size": batch_size}

    def _kept(self, mask: Intervention | None, data: LabelledData) -> ExampleStore:
        return ExampleStore(self.folder, {**self.settings, "data": data.fingerprint}, mask, wait=True)

    def path(self, mask: Intervention | None, data: LabelledData) -> Path:
        """Path of the losses of this mask on these data."""
        return self._kept(mask, data).path

    def losses(
        self, mask: Intervention | None, data: LabelledData, name: str, advance: Callable[[int], object]
    ) -> WindowLosses:
        """Score the windows that are not kept yet, and keep them. Wait while another process scores the same windows.

        Raises:
            DataError: a file is damaged.
        """
        with self._kept(mask, data) as kept:
            return window_losses(
                self.model, mask, data, batch_size=self.batch_size, name=name, advance=advance, kept=kept
            )


def keep_losses(store: LossStore, asked: Sequence[tuple[Condition, LabelledData]], progress: bool) -> None:
    """Compute and keep the losses of some passes."""
    with windows_bar(sum(data.num_windows for _, data in asked), "", progress) as bar:
        for condition, data in asked:
            bar.set_description(condition.name, refresh=False)
            store.losses(condition.mask, data, condition.name, bar.update)
