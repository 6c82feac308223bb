"""The parts of `mix_project` as plain functions: the definition of a step, its forward pass and its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from monet.kernels import limits
from monet.kernels.masked import Keep, token_chunks
from monet.kernels.mixing import Activation, Mixing
from monet.kernels.products import product, takes_onednn
from monet.kernels.shared import UNKNOWN, Facts


class Term(NamedTuple):
    """One output projection: its columns, and whether its weight is stored [out, in], as in nn.Linear, or [in, out]."""

    columns: slice
    out_in: bool


class Step(NamedTuple):
    """One application of a decomposition: how it mixes, and where each mixed array is projected to.

    The mixing returns one array for each term: (T, E, M) if the weight is stored [out, in], (T, E) if it is stored
    [in, out]. `name` is the name of the mixing in the dispatch.
    """

    name: str
    mixing: Mixing
    terms: tuple[Term, ...]
    activation: Activation
    keep: Keep | None

    def mask_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of a mask: saved for backward, so that a mask changed in between is noticed."""
        return () if self.keep is None else tuple(tensor for tensor in self.keep if tensor is not None)

    def mix(self, inputs: tuple[Tensor, ...], rows: slice, facts: Facts = UNKNOWN) -> tuple[Tensor, ...]:
        """The mixed arrays of some tokens; `inputs` are all pre-activations, g1 and g2, `facts` are about g1 and g2."""
        *hidden, g1_tHE, g2_tHE = (tensor[rows] for tensor in inputs)
        keep = self.keep and self.keep.at(rows)
        facts = facts if g1_tHE.shape[0] == inputs[-1].shape[0] else UNKNOWN
        return self.mixing.forward(tuple(hidden), g1_tHE, g2_tHE, self.activation, keep, facts)


def learns(activation: Activation) -> bool:
    """Whether an activation has parameters that need a gradient, which the lean form does not compute."""
    return isinstance(activation, nn.Module) and any(weight.requires_grad for weight in activation.parameters())


def reference(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """`mix_project` as plain differentiable torch; the tests' reference. Weights have the inputs' dtype."""
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
    return token_chunks(T, max(1, hidden_TEM.shape[1] * hidden_TEM.shape[2]), limits.GEMM_ELEMENTS)


def input_gradients(
    step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], dout_TD: Tensor, facts: Facts = UNKNOWN
) -> list[Tensor]:
    """Gradients of pre-activations and gates, given the gradient of the output."""
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
    """Gradients of the wanted output weights, by number, given the gradient of the output."""
    mixed = Mixed(step, wanted)
    mixed.remix(inputs, dout_TD)
    return [mixed.gradients.pop(n) if n in mixed.gradients else mixed.gradient(n, dout_TD) for n in wanted]


class Mixed:
    """The mixed arrays of one backward pass; each is kept until its weight's gradient is computed.

    `_Remix` fills `arrays` if all tokens are one chunk, and `gradients` otherwise; the `_Weight` nodes take from them.
    """

    def __init__(self, step: Step, wanted: list[int]) -> None:
        self.step, self.wanted = step, wanted
        self.arrays: dict[int, Tensor] = {}
        self.gradients: dict[int, Tensor] = {}

    def remix(self, inputs: tuple[Tensor, ...], dout_TD: Tensor, facts: Facts = UNKNOWN) -> None:
        """Recompute what the `_Weight` nodes need."""
        self.arrays, self.gradients = {}, {}  # a backward for only some weights leaves entries of the others
        chunks = _chunks(inputs[0])
        for rows in chunks:
            mixed = self.step.mix(inputs, rows, facts)
            self.arrays = {n: mixed[n] for n in self.wanted}
            del mixed
            if len(chunks) > 1:
                for n in self.wanted:
                    self.gradients[n] = self.gradient(n, dout_TD[rows], self.gradients.get(n))

    def gradient(self, n: int, dout_tD: Tensor, so_far: Tensor | None = None) -> Tensor:
        """Gradient of weight `n` for the tokens that were mixed last, added to `so_far`."""
        term = self.step.terms[n]
        left, right = dout_tD[:, term.columns].t(), self.arrays.pop(n).flatten(1)
        left, right = (left, right) if term.out_in else (right.t(), left.t())
        if so_far is None:
            return product(left, right)
        return so_far.add_(product(left, right)) if takes_onednn(left, right) else so_far.addmm_(left, right)
