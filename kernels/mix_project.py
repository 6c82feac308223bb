"""Activation, mixing and output projections as one step that saves only its inputs for backward.

Both decompositions have the same shape: pre-activations are activated and mixed into a few arrays, and each array is
multiplied by an output weight and added to a block of output columns. What lies between is recomputed in backward,
where it costs little beside the projections, so a layer keeps its pre-activations and nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monet.kernels.dispatch import without_autocast
from monet.kernels.masked import Keep, token_chunks
from monet.kernels.mixing import Activation, Mixing
from monet.kernels.products import product, takes_onednn
from monet.kernels.routing import again
from monet.kernels.shared import UNKNOWN, Facts, SharedGates, facts_of

# How much is done at a time on the CPU, in elements of one hidden array: bounds the temporaries, while the projections'
# matrix products stay large enough to be efficient.
_GEMM_ELEMENTS = 1 << 22
# Below so many elements there is nothing to save by recomputing, and autograd alone is quicker.
_LEAN_FROM_ELEMENTS = 1 << 16


class Term(NamedTuple):
    """One output projection: its columns, and whether its weight is stored [out, in] as nn.Linear's or [in, out]."""

    columns: slice
    out_in: bool


class Step(NamedTuple):
    """A decomposition at work: how it mixes, and where each mixed array is projected to.

    The mixing returns one array a term, (T, E, M) where the weight is stored [out, in] and (T, E) where it is stored
    [in, out]. `name` is what the dispatch knows the mixing by.
    """

    name: str
    mixing: Mixing
    terms: tuple[Term, ...]
    activation: Activation
    keep: Keep | None

    def mask_tensors(self) -> tuple[Tensor, ...]:
        """What a mask is made of: saved for backward, so that a mask changed in between is noticed."""
        return () if self.keep is None else tuple(tensor for tensor in self.keep if tensor is not None)

    def mix(self, inputs: tuple[Tensor, ...], rows: slice, facts: Facts = UNKNOWN) -> tuple[Tensor, ...]:
        """The mixed arrays of some tokens; `inputs` are the pre-activations, g1 and g2 of all, `facts` about these."""
        *hidden, g1_tHE, g2_tHE = (tensor[rows] for tensor in inputs)
        keep = self.keep and self.keep.at(rows)
        facts = facts if g1_tHE.shape[0] == inputs[-1].shape[0] else UNKNOWN
        return self.mixing.forward(tuple(hidden), g1_tHE, g2_tHE, self.activation, keep, facts)


def mix_project(
    step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], shared: SharedGates | None = None
) -> Tensor:
    """Activate, mix and project.

    Args:
        step: what to do.
        inputs: pre-activations, each (T, E, M), then g1_THE and g2_THE.
        weights: one a term.
        shared: what the layers of the group share about their gates, or None.
    Returns:
        (T, D) in the dtype of the pre-activations.
    """
    weights = tuple(weight.to(inputs[0].dtype) for weight in weights)
    with without_autocast(inputs[0].device):
        if torch.compiler.is_compiling():
            from monet.kernels.mix_project_op import traced  # which imports this module

            return traced(step, inputs, weights)  # type: ignore[arg-type]  # the same class by its other path
        learning = learns(step.activation)
        wanted = learning or any(tensor.requires_grad for tensor in (*inputs, *weights))
        if not (torch.is_grad_enabled() and wanted):
            return forward(step, inputs, weights, facts_of(shared, *inputs[-2:]))
        if learning or inputs[0].numel() < max(1, _LEAN_FROM_ELEMENTS):
            return reference(step, inputs, weights)
        facts = facts_of(shared, *inputs[-2:])
        out_TD = _MixProject.apply(step, weights, facts, *inputs)
        mixed = _Mixed(step, [n for n, weight in enumerate(weights) if weight.requires_grad])
        if not mixed.wanted:
            return out_TD
        for n in mixed.wanted:
            out_TD = _Weight.apply(out_TD, mixed, n, weights[n])
        return _Remix.apply(out_TD, mixed, tuple(tensor.detach() for tensor in inputs), facts)


def learns(activation: Activation) -> bool:
    """Whether an activation has parameters that want a gradient, which the lean form does not give."""
    return isinstance(activation, nn.Module) and any(weight.requires_grad for weight in activation.parameters())


def reference(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """`mix_project` as plain differentiable torch; the oracle of the lean form, weights in the inputs' dtype."""
    mixed = step.mix(inputs, slice(0, inputs[0].shape[0]))
    blocks: dict[int, Tensor] = {}
    for term, x, weight in zip(step.terms, mixed, weights, strict=True):
        part = x.flatten(1) @ (weight.t() if term.out_in else weight)
        start = term.columns.start
        blocks[start] = blocks[start] + part if start in blocks else part
    return torch.cat([blocks[start] for start in sorted(blocks)], -1)


def forward(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], facts: Facts = UNKNOWN) -> Tensor:
    """`mix_project` without gradients."""
    T, width = inputs[0].shape[0], max(term.columns.stop for term in step.terms)
    out_TD = inputs[0].new_empty(T, width)
    for rows in _chunks(inputs[0]):
        mixed = step.mix(inputs, rows, facts)
        started: set[int] = set()
        for term, x, weight in zip(step.terms, mixed, weights, strict=True):
            block_tD, x_tP = out_TD[rows, term.columns], x.flatten(1)
            matrix = weight.t() if term.out_in else weight
            if takes_onednn(x_tP, matrix):
                part_tD = product(x_tP, matrix)
                _ = block_tD.add_(part_tD) if term.columns.start in started else block_tD.copy_(part_tD)
            else:
                beta = 1 if term.columns.start in started else 0
                torch.addmm(block_tD, x_tP, matrix, beta=beta, out=block_tD)
            started.add(term.columns.start)
    return out_TD


def _chunks(hidden_TEM: Tensor) -> list[slice]:
    T = hidden_TEM.shape[0]
    if hidden_TEM.is_cuda:
        return [slice(0, T)]
    return token_chunks(T, max(1, hidden_TEM.shape[1] * hidden_TEM.shape[2]), _GEMM_ELEMENTS)


class _MixProject(torch.autograd.Function):
    """The whole step; its backward leads gradients to the pre-activations and gates. `_Weight` serves the weights."""

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
    """Save the step's inputs and more; gates as the logits they came from, where these are saved anyway."""
    gates, ctx.kept_gates = again.keep(inputs[-2:], facts)
    ctx.counts = (len(inputs) - 2, len(gates))
    ctx.save_for_backward(*inputs[:-2], *gates, *rest)


def _saved(ctx: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    saved = ctx.saved_tensors  # once: activation checkpointing allows no second reading
    num_hidden, num_gates = ctx.counts
    gates = again.restore(saved[num_hidden : num_hidden + num_gates], ctx.kept_gates)
    return (*saved[:num_hidden], *gates), saved[num_hidden + num_gates :]


def input_gradients(
    step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], dout_TD: Tensor, facts: Facts = UNKNOWN
) -> list[Tensor]:
    """Gradients of pre-activations and gates for an upstream gradient of the output."""
    E = inputs[0].shape[1]
    dinputs = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
    for rows in _chunks(inputs[0]):
        dmixed = [
            product(dout_TD[rows, term.columns], weight).unflatten(1, (E, -1))
            if term.out_in
            else product(dout_TD[rows, term.columns], weight.t())
            for term, weight in zip(step.terms, weights, strict=True)
        ]
        *hidden, g1_tHE, g2_tHE = (tensor[rows] for tensor in inputs)
        keep = step.keep and step.keep.at(rows)
        parts = [tensor[rows] for tensor in dinputs]
        known = facts if g1_tHE.shape[0] == inputs[-1].shape[0] else UNKNOWN
        step.mixing.backward(tuple(hidden), g1_tHE, g2_tHE, step.activation, keep, dmixed, parts, known)
        del dmixed
    return dinputs


def weight_gradients(step: Step, inputs: tuple[Tensor, ...], wanted: list[int], dout_TD: Tensor) -> list[Tensor]:
    """Gradients of the wanted output weights, by number, for an upstream gradient of the output."""
    mixed = _Mixed(step, wanted)
    mixed.remix(inputs, dout_TD)
    return [mixed.gradients.pop(n) if n in mixed.gradients else mixed.gradient(n, dout_TD) for n in wanted]


class _Mixed:
    """The mixed arrays of one backward, each until its weight's gradient is made of it.

    `_Remix` fills `arrays` when all tokens are one chunk, or else `gradients`; the `_Weight` nodes take from them.
    """

    def __init__(self, step: Step, wanted: list[int]) -> None:
        self.step, self.wanted = step, wanted
        self.arrays: dict[int, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}

    def remix(self, inputs: tuple[Tensor, ...], dout_TD: Tensor, facts: Facts = UNKNOWN) -> None:
        """Recompute what the `_Weight` nodes need."""
        self.arrays, self.gradients = {}, {}  # a backward for some of the weights alone leaves those of the others
        chunks = _chunks(inputs[0])
        for rows in chunks:
            mixed = self.step.mix(inputs, rows, facts)
            self.arrays = {n: mixed[n] for n in self.wanted}
            del mixed
            if len(chunks) > 1:
                for n in self.wanted:
                    self.gradients[n] = self.gradient(n, dout_TD[rows], self.gradients.get(n))

    def gradient(self, n: int, dout_tD: Tensor, so_far: Tensor | None = None) -> Tensor:
        """Gradient of weight `n` from the tokens that were mixed last, added to `so_far`."""
        term = self.step.terms[n]
        left, right = dout_tD[:, term.columns].t(), self.arrays.pop(n).flatten(1)
        left, right = (left, right) if term.out_in else (right.t(), left.t())
        if so_far is None:
            return product(left, right)
        return so_far.add_(product(left, right)) if takes_onednn(left, right) else so_far.addmm_(left, right)


class _Weight(torch.autograd.Function):
    """The identity; backward leads the gradient on to one projection's weight.

    A node for each weight, so that one gradient, the largest array of all, has been added to the parameter's and freed
    before the next is made, and all of them before those of the mixing.
    """

    @staticmethod
    def forward(ctx: Any, out_TD: Tensor, mixed: _Mixed, n: int, weight: Tensor) -> Tensor:
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
    """The identity; the first node in backward, which recomputes the mixed arrays for the `_Weight` nodes behind it."""

    @staticmethod
    def forward(ctx: Any, out_TD: Tensor, mixed: _Mixed, inputs: tuple[Tensor, ...], facts: Facts) -> Tensor:
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
