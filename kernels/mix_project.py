"""Activation, mixing and output projections as one step that saves only its inputs for backward.

Both decompositions have the same shape: pre-activations are activated and mixed into a few arrays. Each array is
multiplied by an output weight and added to a block of output columns. Backward recomputes the arrays between, which
costs little compared with the projections. A layer therefore keeps only its pre-activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monet.kernels import limits
from monet.kernels.dispatch import without_autocast
from monet.kernels.mix_project_op import traced
from monet.kernels.mix_project_parts import Mixed, Step, forward, input_gradients, learns, reference
from monet.kernels.routing import again
from monet.kernels.shared import Facts, SharedGates, facts_of


def mix_project(
    step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], shared: SharedGates | None = None
) -> Tensor:
    """Activate, mix and project.

    Args:
        step: the mixing and its projections.
        inputs: pre-activations, each (T, E, M), then g1_THE and g2_THE.
        weights: one for each term.
        shared: what the layers of the group know in common about their gates, or None.
    Returns:
        (T, D) in the dtype of the pre-activations.
    """
    weights = tuple(weight.to(inputs[0].dtype) for weight in weights)
    with without_autocast(inputs[0].device):
        if torch.compiler.is_compiling():
            return traced(step, inputs, weights)
        learning = learns(step.activation)
        wanted = learning or any(tensor.requires_grad for tensor in (*inputs, *weights))
        if not (torch.is_grad_enabled() and wanted):
            return forward(step, inputs, weights, facts_of(shared, *inputs[-2:]))
        if learning or inputs[0].numel() < max(1, limits.LEAN_FROM_ELEMENTS):
            return reference(step, inputs, weights)
        facts = facts_of(shared, *inputs[-2:])
        out_TD = _MixProject.apply(step, weights, facts, *inputs)
        mixed = Mixed(step, [n for n, weight in enumerate(weights) if weight.requires_grad])
        if not mixed.wanted:
            return out_TD
        for n in mixed.wanted:
            out_TD = _Weight.apply(out_TD, mixed, n, weights[n])
        return _Remix.apply(out_TD, mixed, tuple(tensor.detach() for tensor in inputs), facts)


class _MixProject(torch.autograd.Function):
    """The whole step; its backward computes gradients of pre-activations and gates. `_Weight` serves the weights."""

    @staticmethod
    def forward(ctx: Any, step: Step, weights: tuple[Tensor, ...], facts: Facts, *inputs: Tensor) -> Tensor:
        ctx.step = step
        _save(ctx, inputs, facts, *weights, *step.mask_tensors())
        return forward(step, inputs, weights, facts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
        inputs, rest = _saved(ctx)
        weights = rest[: len(ctx.step.terms)]
        with without_autocast(dout_TD.device):
            dinputs = input_gradients(ctx.step, inputs, weights, dout_TD, again.facts_in(ctx.kept_gates))
        again.done(ctx.kept_gates)
        return None, None, None, *dinputs


def _save(ctx: Any, inputs: tuple[Tensor, ...], facts: Facts, *rest: Tensor) -> None:
    """Save the step's inputs and more tensors; the logits are saved instead of the gates if they are kept anyway."""
    gates, ctx.kept_gates = again.keep(inputs[-2:], facts)
    ctx.counts = (len(inputs) - 2, len(gates))
    ctx.save_for_backward(*inputs[:-2], *gates, *rest)


def _saved(ctx: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    saved = ctx.saved_tensors  # read once: activation checkpointing forbids a second read
    num_hidden, num_gates = ctx.counts
    gates = again.restore(saved[num_hidden : num_hidden + num_gates], ctx.kept_gates)
    return (*saved[:num_hidden], *gates), saved[num_hidden + num_gates :]


class _Weight(torch.autograd.Function):
    """The identity; its backward passes the gradient to the weight of one projection.

    Each weight has its own node. One weight gradient, the largest array of all, is therefore accumulated and freed
    before the next one is made. All of them are freed before the gradients of the mixing are made.
    """

    @staticmethod
    def forward(ctx: Any, out_TD: Tensor, mixed: Mixed, n: int, weight: Tensor) -> Tensor:
        ctx.mixed, ctx.n = mixed, n
        ctx.mark_dirty(out_TD)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
        ready = ctx.mixed.gradients.pop(ctx.n, None)
        with without_autocast(dout_TD.device):
            return dout_TD, None, None, ctx.mixed.gradient(ctx.n, dout_TD) if ready is None else ready


class _Remix(torch.autograd.Function):
    """The identity; the first node in backward. It recomputes the mixed arrays for the `_Weight` nodes after it."""

    @staticmethod
    def forward(ctx: Any, out_TD: Tensor, mixed: Mixed, inputs: tuple[Tensor, ...], facts: Facts) -> Tensor:
        ctx.mixed = mixed
        _save(ctx, inputs, facts, *mixed.step.mask_tensors())
        ctx.mark_dirty(out_TD)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
        inputs, _ = _saved(ctx)
        with without_autocast(dout_TD.device):
            ctx.mixed.remix(inputs, dout_TD, again.facts_in(ctx.kept_gates))
        again.done(ctx.kept_gates)
        return dout_TD, None, None, None
