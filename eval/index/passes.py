"""How text is divided into forward passes: by the text only, so that no option and no kill changes a bit.

float32 rounds differently for other shapes of a batch, and then equal windows would have unequal weights. So the
windows of a forward pass, a chunk, have one length and no pads. Windows of at least `SHORT` tokens share a pass of up
to `TOKENS` tokens. In products of this size, a row does not depend on the number of rows; the tests check it on a CPU.
Shorter windows have a pass each. Part i of n takes each n-th chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from monet.errors import DataError
from monet.eval.core.inputs import Batch, LabelledData
from monet.eval.index.keys import MOST_POSITIONS, MOST_WINDOWS
from monet.parts import Part

TOKENS = 2048
SHORT = 128


def chunks(data: LabelledData, batch_size: int = 8) -> Iterator[Batch]:
    """The forward passes over a text.

    Args:
        data: the text.
        batch_size: windows that are read at once; it does not change the result.

    Raises:
        DataError: a window is longer than 65,536 tokens, or a window number is below 0 or too large for the index.
    """
    waiting: list[Batch] = []
    for batch in data.batches(batch_size):
        for row in range(len(batch.document_B)):
            one = _row(batch, row)
            length, number = one.input_ids_BT.shape[1], int(one.index_B[0])
            if length > MOST_POSITIONS or not 0 <= number < MOST_WINDOWS:
                raise DataError(
                    f"window {number} of {length} tokens: an index takes windows of up to {MOST_POSITIONS} tokens, "
                    f"with numbers from 0 to {MOST_WINDOWS - 1}; shorten seq_len"
                )
            full = (len(waiting) + 1) * length > TOKENS or length < SHORT
            if waiting and (full or waiting[-1].input_ids_BT.shape[1] != length):
                yield _together(waiting)
                waiting = []
            waiting.append(one)
    if waiting:
        yield _together(waiting)


def chunks_of(data: LabelledData, part: Part | None, done: int = 0, batch_size: int = 8) -> Iterator[Batch]:
    """The chunks of one part, without its first `done` ones."""
    for number, chunk in enumerate(chunks(data, batch_size)):
        own, place = (True, number) if part is None else (number % part.count == part.index, number // part.count)
        if own and place >= done:
            yield chunk


def _row(batch: Batch, row: int) -> Batch:
    """One sequence of a batch without its pads."""
    kept_T = slice(None) if batch.attention_mask_BT is None else batch.attention_mask_BT[row] != 0

    def cut(tensor_BT: Tensor | None) -> Tensor | None:
        return None if tensor_BT is None else tensor_BT[row, kept_T][None]

    ids_BT, targets_BT = batch.input_ids_BT[row, kept_T][None], batch.targets_BT[row, kept_T][None]
    one = slice(row, row + 1)
    return Batch(
        ids_BT, None, targets_BT, batch.label_B[one], batch.index_B[one], batch.document_B[one],
        position_ids_BT=cut(batch.position_ids_BT),
    )  # fmt: skip


def _together(rows: list[Batch]) -> Batch:
    positions = [row.position_ids_BT for row in rows if row.position_ids_BT is not None]
    return Batch(
        torch.cat([row.input_ids_BT for row in rows]),
        None,
        torch.cat([row.targets_BT for row in rows]),
        torch.cat([row.label_B for row in rows]),
        torch.cat([row.index_B for row in rows]),
        [row.document_B[0] for row in rows],
        position_ids_BT=torch.cat(positions) if positions else None,
    )
