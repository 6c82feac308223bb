"""Treats the batches of all ranks as one: router statistics, means and their gradients are the same everywhere.

Ranks are the processes of a data-parallel run. A strategy averages their gradients. The functions here are written so
that this average is the gradient of one process on the concatenated batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from monet.kernels.routing.reference import BatchStatistics


def gather_rows(mine_X: Tensor, world_size: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """(W, X): a contiguous vector of each rank, in rank order; every rank must call it, with the same length.

    The collective fills one tensor. With a list of W tensors, the host would prepare and NCCL would copy each tensor
    separately, and the time to start the collective would grow with the number of ranks.
    """
    all_WX = mine_X.new_empty(world_size, mine_X.numel())
    if hasattr(dist, "all_gather_single"):  # its name from torch 2.13 on
        dist.all_gather_single(all_WX, mine_X[None], group)
    else:
        dist.all_gather_into_tensor(all_WX, mine_X[None], group)
    return all_WX


class GlobalBatch:
    """Merges the statistics of the ranks of a process group. Every rank must make the same calls in the same order.

    Args:
        group: the data-parallel ranks; None means all ranks.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world_size = dist.get_world_size(group)

    @torch.no_grad()
    def merge(self, first: BatchStatistics, second: BatchStatistics) -> tuple[BatchStatistics, BatchStatistics]:
        """Moments of both axes over the logits of all ranks, by one gather of 4H+2 numbers per rank.

        Each rank merges the same numbers in the same order, so all ranks get bitwise identical results.
        """
        mine_X = torch.cat([part.reshape(-1) for axis in (first, second) for part in axis])
        all_WX = gather_rows(mine_X, self.world_size, self.group)
        merged = [_merge(axis_WX) for axis_WX in all_WX.chunk(2, dim=1)]
        return merged[0], merged[1]

    def means(self, routers: Sequence[Sequence[Tensor | None]]) -> list[list[Any]]:
        """The same sums over the tokens of all ranks, by one all-reduce.

        Args:
            routers: for each router the fields of `monet.model.router.RouterSums`: means over its tokens, the number of
                firings, the number of tokens.
        Returns:
            The same fields over all ranks. Their gradients are those of this rank's share in them, times the number of
            ranks. The average over the ranks is then the gradient of the global means.
        """
        *_, tokens = routers[0]
        assert tokens is not None
        means = [field for *fields, _, _ in routers for field in fields if field is not None]
        counts = [field for *_, fired, tokens in routers for field in (fired, tokens) if field is not None]
        # float64 represents counts exactly, and the order of the ranks does not affect the means
        flat_means = torch.cat([field.double().reshape(-1) for field in means])
        flat_counts = torch.cat([field.detach().double().reshape(-1) for field in counts])
        reduced, summed = _GlobalMeans.apply(flat_means, flat_counts, tokens.double(), self)
        new_means = iter(_split(reduced, means))
        new_counts = iter(_split(summed, counts))
        return [
            [*(None if field is None else next(new_means) for field in fields), next(new_counts), next(new_counts)]
            for *fields, _, _ in routers
        ]


class _GlobalMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, counts: Tensor, tokens: Tensor, ranks: GlobalBatch) -> tuple[Tensor, Tensor]:
        total = torch.cat([means * tokens, counts, tokens.reshape(1)])
        dist.all_reduce(total, group=ranks.group)
        share = tokens / total[-1].clamp(min=1)
        ctx.save_for_backward(share * ranks.world_size)
        summed = total[means.numel() : -1].clone()
        ctx.mark_non_differentiable(summed)
        return total[: means.numel()] / total[-1].clamp(min=1), summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return gradient * weight, None, None, None


def _split(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([field.numel() for field in like])
    return [part.view(field.shape).to(field.dtype) for part, field in zip(parts, like, strict=True)]


def _merge(moments_WX: Tensor) -> BatchStatistics:
    """Moments of the union of W sets of logits; each row has the count, means and squared deviations of H heads."""
    num_heads = (moments_WX.shape[1] - 1) // 2
    count_W1, mean_WH, m2_WH = moments_WX.split([1, num_heads, num_heads], dim=1)
    count = count_W1.sum()
    mean_H = (count_W1 * mean_WH).sum(0) / count.clamp(min=1)
    m2_H = (m2_WH + count_W1 * (mean_WH - mean_H) ** 2).sum(0)
    return BatchStatistics(count, mean_H, m2_H)
