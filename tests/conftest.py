"""The start state of every test: fixed seeds, one thread, no network, and uninitialised memory filled with NaN.

The processes that a test starts inherit the thread and the settings of the environment.
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

# Set before the libraries are imported: no test may access a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes, each of which imports torch

torch.set_num_threads(1)  # at these sizes a second thread does not help


def pytest_itemcollected(item: pytest.Item) -> None:
    """A nightly test is a slow one."""
    if item.get_closest_marker("nightly"):
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)  # after -m has left out tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests run first, so that no worker waits for a long file of another at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def fixed_state() -> None:
    """Reset the seeds and torch's settings, which a training run in this process changes."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def nan_filled_empty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tests/kernels, memory from `torch.empty` is NaN, so that tests detect elements that were never written."""
    if "kernels" not in request.path.parts:
        return

    def filled(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for owner, name in [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]:
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
