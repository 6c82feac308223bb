"""Activation, mixing and output projections as one step that saves only its inputs for backward.

Both decompositions have the same shape: pre-activations are activated and mixed into a few arrays, and each array is
multiplied by an output weight and added to a block of output columns. What lies between is recomputed in backward,
where it costs little beside the projections, so a layer keeps its pre-activations and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monet.kernels.dispatch import without_autocast
from monet.kernels.masked import Keep, token_chunks

# How much is mixed at a time, in elements of one hidden array: bounds the temporaries, while the projections' matrix
# products stay large enough to be efficient.
_FORWARD_ELEMENTS = 1 << 22
_BACKWARD_ELEMENTS = 1 << 22
# Below so many elements there is nothing to save by recomputing, and autograd alone is quicker.
_LEAN_FROM_ELEMENTS = 1 << 16


class Term(NamedTuple):
    """One output projection: its columns, and whether its weight is stored [out, in] as nn.Linear's or [in, out]."""

    columns: slice
    out_in: bool


class Form(NamedTuple):
    """A decomposition: how activated arrays are mixed, and where each mixed array is projected to.

    mix(*activated, g1_THE, g2_THE, keep) returns one array a term, (T, E, M) or (T, E).
    """

    mix: Callable[..., tuple[Tensor, ...]]
    terms: tuple[Term, ...]


def mix_project(
    form: Form,
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None,
    hidden: tuple[Tensor, ...],
    g1_THE: Tensor,
    g2_THE: Tensor,
    weights: tuple[Tensor, ...],
) -> Tensor:
    """Activate, mix and project; returns (T, D) in the dtype of the pre-activations `hidden`, each (T, E, M)."""
    dtype = hidden[0].dtype
    g1_THE, g2_THE = g1_THE.to(dtype), g2_THE.to(dtype)
    weights = tuple(weight.to(dtype) for weight in weights)
    inputs = (*hidden, g1_THE, g2_THE, *weights)
    with without_autocast(hidden[0].device):
        if torch.compiler.is_compiling():
            return reference(form, activation, keep, hidden, g1_THE, g2_THE, weights)
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
            return _forward(form, activation, keep, hidden, g1_THE, g2_THE, weights)
        if hidden[0].numel() < max(1, _LEAN_FROM_ELEMENTS):
            return reference(form, activation, keep, hidden, g1_THE, g2_THE, weights)
        return _MixProject.apply(form, activation, keep, len(hidden), *inputs)


def reference(
    form: Form,
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None,
    hidden: tuple[Tensor, ...],
    g1_THE: Tensor,
    g2_THE: Tensor,
    weights: tuple[Tensor, ...],
) -> Tensor:
    """`mix_project` as plain differentiable torch; the oracle of the lean form, all arguments in one dtype."""
    mixed = _mix(form, [activation(h) for h in hidden], g1_THE, g2_THE, keep)
    blocks: dict[int, Tensor] = {}
    for term, x, weight in zip(form.terms, mixed, weights, strict=True):
        part = x.flatten(1) @ (weight.t() if term.out_in else weight)
        start = term.columns.start
        blocks[start] = blocks[start] + part if start in blocks else part
    return torch.cat([blocks[start] for start in sorted(blocks)], -1)


def _forward(
    form: Form,
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None,
    hidden: tuple[Tensor, ...],
    g1_THE: Tensor,
    g2_THE: Tensor,
    weights: tuple[Tensor, ...],
) -> Tensor:
    T, width = hidden[0].shape[0], max(term.columns.stop for term in form.terms)
    out_TD = hidden[0].new_empty(T, width)
    for rows in _chunks(hidden[0], _FORWARD_ELEMENTS):
        activated = [activation(h[rows]) for h in hidden]
        mixed = _mix(form, activated, g1_THE[rows], g2_THE[rows], keep and keep.at(rows))
        started: set[int] = set()
        for term, x, weight in zip(form.terms, mixed, weights, strict=True):
            block_tD = out_TD[rows, term.columns]
            matrix = weight.t() if term.out_in else weight
            beta = 1 if term.columns.start in started else 0
            torch.addmm(block_tD, x.flatten(1), matrix, beta=beta, out=block_tD)
            started.add(term.columns.start)
    return out_TD


def _mix(form: Form, activated: list[Tensor], g1_THE: Tensor, g2_THE: Tensor, keep: Keep | None) -> tuple[Tensor, ...]:
    """Mix with a mask, but bitwise as without one for the tokens it exempts."""
    if keep is None or keep.index_T is None or bool((keep.index_T >= 0).all()):
        return form.mix(*activated, g1_THE, g2_THE, keep)
    plain = form.mix(*activated, g1_THE, g2_THE, None)
    rows = (keep.index_T >= 0).nonzero()[:, 0]
    if rows.numel() == 0:
        return plain
    keep = Keep(keep.weights_SEE, keep.index_T[rows])
    masked = form.mix(*(a[rows] for a in activated), g1_THE[rows], g2_THE[rows], keep)
    return tuple(x.index_copy(0, rows, y) for x, y in zip(plain, masked, strict=True))


def _chunks(hidden_TEM: Tensor, elements: int) -> list[slice]:
    T = hidden_TEM.shape[0]
    return (
        [slice(0, T)]
        if hidden_TEM.is_cuda
        else token_chunks(T, max(1, hidden_TEM.shape[1] * hidden_TEM.shape[2]), elements)
    )


class _MixProject(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        activation: Callable[[Tensor], Tensor],
        keep: Keep | None,
        num_hidden: int,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.form, ctx.activation, ctx.keep, ctx.num_hidden = form, activation, keep, num_hidden
        ctx.save_for_backward(*inputs)
        g1_THE, g2_THE = inputs[num_hidden : num_hidden + 2]
        return _forward(form, activation, keep, inputs[:num_hidden], g1_THE, g2_THE, inputs[num_hidden + 2 :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
        num_mixed = ctx.num_hidden + 2
        inputs = ctx.saved_tensors
        mixed_inputs, weights = inputs[:num_mixed], inputs[num_mixed:]
        blocks = [dout_TD[:, term.columns] for term in ctx.form.terms]
        needed_weights = ctx.needs_input_grad[4 + num_mixed :]
        with without_autocast(dout_TD.device):
            mixed, dinputs = _mix_backward(ctx, mixed_inputs, blocks, weights)
            dweights = [
                None if not needed else (torch.mm(d.t(), x) if term.out_in else torch.mm(x.t(), d))
                for term, x, d, needed in zip(ctx.form.terms, mixed, blocks, needed_weights, strict=True)
            ]
        return None, None, None, None, *dinputs, *dweights


def _mix_backward(
    ctx: Any, inputs: tuple[Tensor, ...], blocks: list[Tensor], weights: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Mixed arrays as (T, features), recomputed, and the gradients of the mixing's inputs."""
    T, E, _ = inputs[0].shape
    terms = ctx.form.terms
    dmixed = [torch.mm(d, w if term.out_in else w.t()) for term, d, w in zip(terms, blocks, weights, strict=True)]
    chunks = _chunks(inputs[0], _BACKWARD_ELEMENTS) if ctx.keep is None else token_chunks(T, E * E)
    results: list[Tensor] = []
    for rows in chunks:
        leaves = [tensor[rows].detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            activated = [ctx.activation(leaf) for leaf in leaves[: ctx.num_hidden]]
            g1_tHE, g2_tHE = leaves[ctx.num_hidden :]
            outputs = _mix(ctx.form, activated, g1_tHE, g2_tHE, ctx.keep and ctx.keep.at(rows))
        upstream = [d[rows].view_as(x) for d, x in zip(dmixed, outputs, strict=True)]
        chunk = [*(x.detach().flatten(1) for x in outputs), *torch.autograd.grad(outputs, leaves, upstream)]
        if len(chunks) == 1:
            results = chunk
            break
        results = results or [x.new_empty(T, *x.shape[1:]) for x in chunk]
        for whole, part in zip(results, chunk, strict=True):
            whole[rows] = part
    return results[: len(terms)], results[len(terms) :]
