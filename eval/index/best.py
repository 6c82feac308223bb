"""Keep the entries with the largest keys of each row. The result does not depend on the order of the entries.

Dims: N rows, Q kept entries of a row, P offered entries, T rows that got an offer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Best:
    """The Q entries with the largest keys of each of N rows.

    Keys of one row must differ, so that the result is one, in any order of the offers.

    Args:
        rows: N.
        kept: Q.
        device: device of the tables.
        payload: dtype of the number that an entry carries.

    Attributes:
        key_NQ: int64, largest first; 0 in empty places. Keys of entries are above 0.
        payload_NQ: the numbers of the entries.
        bar_N: int32, upper 32 bits of the smallest kept key; an entry below it cannot be kept.
    """

    def __init__(self, rows: int, kept: int, device: torch.device, payload: torch.dtype = torch.int64) -> None:
        self.key_NQ = torch.zeros(rows, kept, dtype=torch.int64, device=device)
        self.payload_NQ = torch.zeros(rows, kept, dtype=payload, device=device)
        self.bar_N = torch.zeros(rows, dtype=torch.int32, device=device)

    def restore(self, key_NQ: Tensor, payload_NQ: Tensor) -> None:
        """Take the tables of an earlier state."""
        self.key_NQ.copy_(key_NQ)
        self.payload_NQ.copy_(payload_NQ)
        self.bar_N.copy_(key_NQ[:, -1] >> 32)

    def offer(self, row_P: Tensor, key_P: Tensor, payload_P: Tensor) -> None:
        """Add entries; only those among the best of their row stay.

        Args:
            row_P: int64.
            key_P: int64, above 0.
            payload_P: a number for each entry.
        """
        kept = self.key_NQ.shape[1]
        better_P = places_of(key_P > self.key_NQ[:, kept - 1].index_select(0, row_P))
        if not len(better_P):
            return
        row_P, key_P, payload_P = (column_P.index_select(0, better_P) for column_P in (row_P, key_P, payload_P))
        order_P = key_P.argsort(descending=True, stable=True)
        order_P = order_P[row_P[order_P].argsort(stable=True)]
        touched_T, offers_T = row_P[order_P].unique_consecutive(return_counts=True)
        line_P = torch.arange(len(touched_T), device=row_P.device).repeat_interleave(offers_T)
        place_P = torch.arange(len(row_P), device=row_P.device) - (offers_T.cumsum(0) - offers_T)[line_P]
        good_P = place_P < kept
        line_P, place_P, order_P = line_P[good_P], place_P[good_P], order_P[good_P]
        shape = (len(touched_T), int(place_P.max()) + 1)
        key_TM, payload_TM = key_P.new_zeros(shape), self.payload_NQ.new_zeros(shape)
        key_TM[line_P, place_P] = key_P[order_P]
        payload_TM[line_P, place_P] = payload_P[order_P].to(payload_TM.dtype)
        key_TM = torch.cat([self.key_NQ[touched_T], key_TM], dim=1)
        payload_TM = torch.cat([self.payload_NQ[touched_T], payload_TM], dim=1)
        key_TM, order_TM = key_TM.sort(dim=1, descending=True, stable=True)
        self.key_NQ[touched_T] = key_TM[:, :kept]
        self.payload_NQ[touched_T] = payload_TM.gather(1, order_TM[:, :kept])
        self.bar_N[touched_T] = (key_TM[:, kept - 1] >> 32).int()


def places_of(true_P: Tensor) -> Tensor:
    """Places of the true values; numpy finds rare ones several times faster than torch."""
    return torch.from_numpy(np.flatnonzero(true_P.numpy())) if true_P.is_cpu else true_P.nonzero().view(-1)
