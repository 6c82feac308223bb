"""Several documents in one row: the arguments with which flash attention separates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def varlen_arguments(position_ids: Tensor, num_rows: int) -> dict[str, Any]:
    """Arguments with which transformers' flash attention attends only inside each document.

    Flash attention itself finds documents in the position ids only for a single row. sdpa, eager and flex_attention do
    not need these arguments: `create_causal_mask` finds documents in the position ids for any number of rows.

    Args:
        position_ids: (B or 1, T) int64; a document continues where a position is 1 more than the previous one.
        num_rows: B.
    Returns:
        cu_seq_lens_q, cu_seq_lens_k: (documents + 1,) int32, the start of each document among all B * T tokens, and the
        end; max_length_q, max_length_k: tokens of the longest document. Empty if every row is one document.
    """
    positions_BT = position_ids.expand(num_rows, -1)
    begins_BT = torch.ones_like(positions_BT, dtype=torch.bool)
    begins_BT[:, 1:] = positions_BT.diff(dim=-1) != 1
    begins = begins_BT.flatten().nonzero().flatten()
    if len(begins) == num_rows:
        return {}
    edges = torch.nn.functional.pad(begins, (0, 1), value=positions_BT.numel()).to(torch.int32)
    longest = int(edges.diff().max())
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}
