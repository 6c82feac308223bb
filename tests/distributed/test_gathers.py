"""What starting a gather costs the host does not grow with the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monet.kernels.routing.reference import BatchStatistics
from monet.ranks import GlobalBatch

WORLD_SIZE = 512


@pytest.fixture
def many_ranks() -> Iterator[None]:
    """This process is rank 0 of many; torch's fake backend moves no data."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD_SIZE)
    yield
    dist.destroy_process_group()


class CollectiveTensors(TorchDispatchMode):
    """Counts the tensors that collectives take and return."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "c10d" in str(func):
            self.count += sum(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs, out)))
        return out


def test_a_routers_gather_is_one_tensor(many_ranks):
    half = torch.rand(8, dtype=torch.float64)
    moments = BatchStatistics(torch.tensor(16.0, dtype=torch.float64), half, half)
    with CollectiveTensors() as tensors:
        GlobalBatch().merge(moments, moments)
    assert 0 < tensors.count <= 4, f"the gather over {WORLD_SIZE} ranks handled {tensors.count} tensors"
