"""Several documents in one row: the arguments by which flash attention keeps them apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def varlen_arguments(position_ids: Tensor, num_rows: int) -> dict[str, Any]:
    """What transformers' flash attention takes to attend inside each document only.

    It reads documents from position ids itself, but for a single row. sdpa, eager and flex_attention need nothing of
    this: `create_causal_mask` sees the documents in the position ids of any number of rows.

    Args:
        position_ids: (B or 1, T) int64; a document goes on where a position is 1 more than the one before.
        num_rows: B.
    Returns:
        cu_seq_lens_q, cu_seq_lens_k: (documents + 1,) int32, where documents begin among all B * T tokens, and the end;
        max_length_q, max_length_k: tokens of the longest. Empty when every row is one document.
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
