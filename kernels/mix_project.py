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

# How much is done at a time, in elements of one hidden array: bounds the temporaries, while the projections' matrix
# products stay large enough to be efficient.
_GEMM_ELEMENTS = 1 << 22
# Within that, how much of the mixing's backward: its many temporaries stay in the cache.
_CACHE_ELEMENTS = 1 << 18
# Below so many elements there is nothing to save by recomputing, and autograd alone is quicker.
_LEAN_FROM_ELEMENTS = 1 << 16


class Term(NamedTuple):
    """One output projection: its columns, and whether its weight is stored [out, in] as nn.Linear's or [in, out]."""

    columns: slice
    out_in: bool


class Form(NamedTuple):
    """A decomposition: how activated arrays are mixed, and where each mixed array is projected to.

    mix(*activated, g1_THE, g2_THE, keep) returns one array a term, (T, E, M) where the weight is stored [out, in]
    and (T, E) where it is stored [in, out]; mix_backward(*activated, g1_THE, g2_THE, *dmixed) returns the gradients of
    mix's inputs when no expert is masked.
    """

    mix: Callable[..., tuple[Tensor, ...]]
    mix_backward: Callable[..., tuple[Tensor, ...]]
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
        out_TD = _MixProject.apply(form, activation, keep, weights, *hidden, g1_THE, g2_THE)
        if not any(weight.requires_grad for weight in weights):
            return out_TD
        constants = tuple(tensor.detach() for tensor in (*hidden, g1_THE, g2_THE))
        return _Weights.apply(out_TD, form, activation, keep, constants, *weights)


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
    for rows in _chunks(hidden[0], _GEMM_ELEMENTS):
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
    """The whole step; its backward leads gradients to the pre-activations and gates. `_Weights` serves the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        form: Form,
        activation: Callable[[Tensor], Tensor],
        keep: Keep | None,
        weights: tuple[Tensor, ...],
        *inputs: Tensor,
    ) -> Tensor:
        ctx.form, ctx.activation, ctx.keep, ctx.num_inputs = form, activation, keep, len(inputs)
        ctx.save_for_backward(*inputs, *weights)
        return _forward(form, activation, keep, inputs[:-2], inputs[-2], inputs[-1], weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
        inputs, weights = ctx.saved_tensors[: ctx.num_inputs], ctx.saved_tensors[ctx.num_inputs :]
        E = inputs[0].shape[1]
        dinputs = tuple(torch.empty_like(tensor) for tensor in inputs)
        with without_autocast(dout_TD.device):
            for rows in _chunks(inputs[0], _GEMM_ELEMENTS):
                dmixed = [
                    torch.mm(dout_TD[rows, term.columns], weight if term.out_in else weight.t()).unflatten(1, (E, -1))
                    for term, weight in zip(ctx.form.terms, weights, strict=True)
                ]
                dmixed = [d if term.out_in else d[..., 0] for term, d in zip(ctx.form.terms, dmixed, strict=True)]
                _mix_backward(
                    ctx.form,
                    ctx.activation,
                    ctx.keep and ctx.keep.at(rows),
                    [tensor[rows] for tensor in inputs],
                    dmixed,
                    [tensor[rows] for tensor in dinputs],
                )
                del dmixed
        return None, None, None, None, *dinputs


class _Weights(torch.autograd.Function):
    """The identity; backward recomputes the mixed arrays and leads the gradient on to the projections' weights.

    A node of its own that comes first in backward, so that these gradients, the largest arrays of all, have been added
    to the parameters' and freed before those of the mixing are made.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out_TD: Tensor,
        form: Form,
        activation: Callable[[Tensor], Tensor],
        keep: Keep | None,
        inputs: tuple[Tensor, ...],
        *weights: Tensor,
    ) -> Tensor:
        ctx.form, ctx.activation, ctx.keep = form, activation, keep
        ctx.save_for_backward(*inputs)
        return out_TD.view_as(out_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
        form, (*hidden, g1_THE, g2_THE) = ctx.form, ctx.saved_tensors
        dweights: list[Tensor | None] = [None] * len(form.terms)
        with without_autocast(dout_TD.device):
            for rows in _chunks(hidden[0], _GEMM_ELEMENTS):
                activated = [ctx.activation(h[rows]) for h in hidden]
                mixed = list(_mix(form, activated, g1_THE[rows], g2_THE[rows], ctx.keep and ctx.keep.at(rows)))
                del activated
                for n, term in enumerate(form.terms):
                    left, right = dout_TD[rows, term.columns].t(), mixed.pop(0).flatten(1)
                    left, right = (left, right) if term.out_in else (right.t(), left.t())
                    if ctx.needs_input_grad[5 + n]:
                        so_far = dweights[n]
                        dweights[n] = torch.mm(left, right) if so_far is None else so_far.addmm_(left, right)
                    del left, right
        return dout_TD, None, None, None, None, *dweights


def _mix_backward(
    form: Form,
    activation: Callable[[Tensor], Tensor],
    keep: Keep | None,
    inputs: list[Tensor],
    dmixed: list[Tensor],
    dinputs: list[Tensor],
) -> None:
    """Write the gradients of the pre-activations, g1 and g2 into `dinputs`."""
    T, E, _ = inputs[0].shape
    for rows in _chunks(inputs[0], _CACHE_ELEMENTS) if keep is None else token_chunks(T, E * E):
        leaves = [tensor[rows].detach() for tensor in inputs]
        upstream = [d[rows] for d in dmixed]
        hidden = [leaf.requires_grad_() for leaf in leaves[:-2]]
        with torch.enable_grad():
            activated = [activation(leaf) for leaf in hidden]
            if keep is not None:
                g1, g2 = (leaf.requires_grad_() for leaf in leaves[-2:])
                mixed = _mix(form, activated, g1, g2, keep.at(rows))
                parts = torch.autograd.grad(mixed, [*hidden, g1, g2], upstream)
        if keep is None:
            *dactivated, dg1, dg2 = form.mix_backward(*(a.detach() for a in activated), *leaves[-2:], *upstream)
            parts = (*torch.autograd.grad(activated, hidden, dactivated), dg1, dg2)
        for whole, part in zip(dinputs, parts, strict=True):
            whole[rows] = part
