"""Triton kernels in Triton's interpreter, in a separate process: `TRITON_INTERPRET=1 pytest tests/interpreted`.

The interpreter is on or off for a whole process, so these tests are not collected with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from packaging.version import Version

from monet.kernels.dispatch import interpreted

collect_ignore_glob = [] if interpreted() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all if triton's interpreter itself fails: 3.6 passes an array to `range`, which numpy refuses since 2.4."""
    if not interpreted():
        return
    import triton

    if Version(triton.__version__) >= Version("3.7") or Version(numpy.__version__) < Version("2.4"):
        return
    reason = (
        f"triton {triton.__version__} cannot interpret kernels with numpy {numpy.__version__}: its `range(tensor)` "
        "fails; use triton 3.7 or later, or numpy before 2.4"
    )
    for item in items:
        if "interpreted" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))


_empty, _empty_like, _new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype != torch.bool:
        value = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
        tensor.detach().fill_(value)  # detached: torch's checkpoints make a leaf that requires a gradient
    return tensor


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force Triton, and fill uninitialised memory, so that tests detect elements that were never written."""
    monkeypatch.setenv("MONET_KERNELS", "triton")
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _poison(_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: _poison(_empty_like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: _poison(_new_empty(*a, **k)))


class _Counted:
    """A kernel whose launches are listed."""

    def __init__(self, kernel: Any, launches: list[tuple[int, ...]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.launches.append(grid)
        return self.kernel[grid]


@pytest.fixture
def count_launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, str], list[tuple[int, ...]]]:
    """(module, name of a kernel in it) -> a list that gets the grid of each launch."""

    def start(module: ModuleType, name: str) -> list[tuple[int, ...]]:
        launches: list[tuple[int, ...]] = []
        monkeypatch.setattr(module, name, _Counted(getattr(module, name), launches))
        return launches

    return start
