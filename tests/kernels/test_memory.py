"""Memory grows with T * E, never with T * E * E, and a layer saves only its pre-activations."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monet.kernels import limits
from monet.kernels.routing import op as routing
from tests.kernels.cases import keep_of
from tests.kernels.explicit import DECOMPOSITIONS, Example, call_op, set_sizes
from tests.tolerances import relative_rms


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returned, in float32 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # a broadcast view has many elements and no memory
        sizes = [part.untyped_storage().nbytes() for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
        self.numel = max([self.numel, *(size // 4 for size in sizes)])
        return result


def test_the_counter_sees_a_large_tensor():
    with LargestTensor() as largest:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert largest.numel == 20


@pytest.mark.parametrize(
    ("mask", "dense", "grad"),
    [
        ("none", True, False),
        ("none", True, True),
        ("hard", False, False),
        ("hard", True, False),
        ("hard", False, True),
        ("a mask a token", False, False),
        ("a mask a token", False, True),
    ],
)
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_nothing_grows_with_tokens_and_pairs(form, mask, dense, grad, monkeypatch):
    T, E, M, D, H = 512, 128, 2, 8, 1
    pair_bound = E * E * 4
    set_sizes(monkeypatch, chunk=pair_bound, pairs=pair_bound)
    example = Example(form, T=T, E=E, M=M, D=D, H=H, dense=dense, dtype=torch.float32)
    keep = keep_of(example, mask)
    inputs = tuple(part.requires_grad_(grad) for part in example.op_inputs())
    largest_input = max(part.numel() for part in inputs)
    with LargestTensor() as largest:
        out = call_op(form, inputs, keep=keep)
        if grad:
            out.square().sum().backward()
    assert largest.numel <= max(largest_input, pair_bound) < T * E * E // 50


def test_the_bound_on_pairs_is_far_below_all_pairs_of_a_batch():
    """At the released size a batch of 2048 tokens has 2^29 pairs; the bound allows 2^22 of them at a time."""
    assert limits.PAIR_ELEMENTS <= 2048 * 512 * 512 // 128


@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_saved_for_backward(form, monkeypatch):
    set_sizes(monkeypatch)
    T, E, M, D, H = 64, 16, 4, 8, 4
    example = Example(form, T=T, E=E, M=M, D=D, H=H, dtype=torch.float32)
    inputs = tuple(part.requires_grad_() for part in example.op_inputs())
    own = {part.untyped_storage().data_ptr() for part in inputs}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call_op(form, inputs)
    assert saved.keys() == own, "the op may save its arguments and nothing else"


def test_routing_saves_only_the_probabilities():
    z_TP = torch.randn(32, 4 * 16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        g_TP = routing.thresholded_softmax(z_TP * 1.0, torch.zeros(4, dtype=torch.float64), overwrite=True)
    assert [part.untyped_storage().data_ptr() for part in saved] == [g_TP.untyped_storage().data_ptr()]


@pytest.mark.parametrize("mask", ["none", "hard", "a mask a token"])
@pytest.mark.parametrize("form", DECOMPOSITIONS)
def test_chunk_borders(form, mask, monkeypatch):
    """Results and gradients are the same for one token at a time, three at a time and all at once."""
    example = Example(form, T=11)
    keep = keep_of(example, mask)
    upstream = torch.randn(11, example.D, dtype=torch.float64)

    def run() -> list[torch.Tensor]:
        inputs = tuple(part.detach().clone().requires_grad_() for part in example.op_inputs())
        out = call_op(form, inputs, keep=keep)
        with torch.no_grad():
            inference = call_op(form, inputs, keep=keep)
        return [out, inference, *torch.autograd.grad(out, inputs, upstream)]

    set_sizes(monkeypatch)
    whole = run()
    width, pairs = example.pre_activations()[0][0].numel(), example.E**2
    for mix_elements, pair_elements in [
        (1, 1),
        (3 * width, 3 * pairs),
        (4 * width + 1, 2 * pairs - 1),
        (1, 10 * pairs),
    ]:
        set_sizes(monkeypatch, chunk=mix_elements, pairs=pair_elements)
        for got, wanted in zip(run(), whole, strict=True):
            assert relative_rms(got, wanted) < 1e-13


def test_chunk_borders_of_routing(monkeypatch):
    z_TP, threshold_H = torch.randn(11, 3 * 5), torch.tensor([0.5, 0.0, 9.0], dtype=torch.float64)
    whole = routing.thresholded_softmax(z_TP, threshold_H)
    for elements in (1, 15, 31, 46):
        monkeypatch.setattr(limits, "LOGIT_ELEMENTS", elements)
        assert torch.equal(routing.thresholded_softmax(z_TP, threshold_H), whole)
