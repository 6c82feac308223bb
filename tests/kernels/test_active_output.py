"""Output projections over active keys inside the dense layer: the same numbers, and only where they pay."""

from __future__ import annotations

import pytest
import torch

from monet.kernels import mix_project
from monet.kernels.decode import active_output, build
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op, set_sizes
from tests.tolerances import assert_close

needs_cpp = pytest.mark.skipif(not build.has_cpp(), reason="the C++ kernels cannot be built here")


@needs_cpp
@pytest.mark.parametrize("form", DECOMPOSITIONS)
@pytest.mark.parametrize("chunk", [None, 40], ids=["one chunk", "chunks"])
def test_outputs_and_gradients_are_the_dense_ones(form, chunk, monkeypatch):
    example = Example(form, T=13, H=2, E=32, M=4, D=34, dtype=torch.float32)
    upstream_TD = torch.randn(13, 34, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(active_output, "SMALLEST_LAYER", 1)
    monkeypatch.setattr(active_output, "LARGEST_SHARE", 1.0)
    set_sizes(monkeypatch, chunk=chunk)
    calls = []
    project = active_output.project_active
    monkeypatch.setattr(mix_project, "project_active", lambda *args: calls.append(args) or project(*args))

    def run() -> tuple[torch.Tensor, ...]:
        leaves = tuple(tensor.detach().requires_grad_() for tensor in example.op_inputs())
        out_TD = call_op(form, leaves)
        return out_TD.detach(), *torch.autograd.grad(out_TD, leaves, upstream_TD)

    active = run()
    assert calls
    calls.clear()
    monkeypatch.setenv("MONET_DECODE", "dense")
    dense = run()
    assert not calls
    for n, (ours, theirs) in enumerate(zip(active, dense, strict=True)):
        assert_close(f"result {n}", ours, theirs)


def gates(share: float, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g_THE = torch.zeros(4, 2, 100, dtype=dtype)
    g_THE[:, 0, : round(100 * share)] = 1.0
    return [g_THE, g_THE]


@needs_cpp
def test_chosen_for_large_float32_weights_with_few_active_keys(monkeypatch):
    weights = [torch.zeros(1 << 11, 1 << 10)]
    choose = active_output.reads_active_rows
    assert choose(gates(0.3), weights)
    assert not choose(gates(0.31), weights)
    assert not choose(gates(0.1), [weights[0][:-1]])
    assert not choose(gates(0.1), [weights[0].bfloat16()])
    assert not choose(gates(0.1), [weights[0].to("meta")])
    with monkeypatch.context() as patch:
        patch.setattr(active_output, "onednn_products", lambda: True)
        assert not choose(gates(0.1), weights)
    monkeypatch.setenv("MONET_DECODE", "dense")
    assert not choose(gates(0.1), weights)
