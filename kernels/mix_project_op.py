"""`mix_project` under torch.compile: one operator forward and two backward, which save only the step's inputs.

A graph of the single operations would save the mixed arrays: the compiler does not recompute opaque operators, and it
would merge deliberate recomputation with the first computation. It cannot move operators that need the upstream
gradient into the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monet.kernels.activations import by_number, number_of
from monet.kernels.dispatch import resolve
from monet.kernels.masked import Keep
from monet.kernels.mix_project_parts import (
    Step,
    Term,
    forward,
    input_gradients,
    learns,
    reference,
    weight_gradients,
)

# Arguments of every operator: inputs and weights as in `mix_project`, then the step as plain values. These are the
# mixing's name, the first and last column and the orientation of each term, the activation's number, and the mask.
_STEP = "str name, SymInt[] columns, bool[] out_in, int act, Tensor? keep, Tensor? index"


def traced(step: Step, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """`mix_project` for a graph; weights have the inputs' dtype.

    An activation without a number, or one with parameters, leaves the single operations in the graph.
    """
    act = number_of(step.activation)
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *weights))
    if act is None or learns(step.activation) or not (differentiated or step.keep is not None):
        return reference(step, inputs, weights)
    columns = [edge for term in step.terms for edge in (term.columns.start, term.columns.stop)]
    out_in = [term.out_in for term in step.terms]
    keep, index = (None, None) if step.keep is None else (step.keep.weights_SEE, step.keep.index_T)
    return torch.ops.monet.mix_project(list(inputs), list(weights), step.name, columns, out_in, act, keep, index)


def _step(
    p_TEM: Tensor, name: str, columns: list[int], out_in: list[bool], act: int, keep: Tensor | None,
    index: Tensor | None,
) -> Step:  # fmt: skip
    spans = [slice(*columns[n : n + 2]) for n in range(0, len(columns), 2)]
    terms = tuple(Term(span, flag) for span, flag in zip(spans, out_in, strict=True))
    return Step(name, resolve(name, p_TEM), terms, by_number(act), None if keep is None else Keep(keep, index))


@torch.library.custom_op(
    "monet::mix_project", mutates_args=(), schema=f"(Tensor[] inputs, Tensor[] weights, {_STEP}) -> Tensor"
)
def _mix_project(inputs: list[Tensor], weights: list[Tensor], *values: Any) -> Tensor:
    return forward(_step(inputs[0], *values), tuple(inputs), tuple(weights))


@_mix_project.register_fake
def _(
    inputs: list[Tensor], weights: list[Tensor], name: str, columns: list[int], out_in: list[bool], act: int,
    keep: Tensor | None, index: Tensor | None,
) -> Tensor:  # fmt: skip
    return inputs[0].new_empty(inputs[0].shape[0], max(columns))


@torch.library.custom_op(
    "monet::mix_project_inputs",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor[] inputs, Tensor[] weights, {_STEP}) -> Tensor[]",
)
def _inputs(dout: Tensor, inputs: list[Tensor], weights: list[Tensor], *values: Any) -> list[Tensor]:
    with _autograd_in_an_operator():
        return input_gradients(_step(inputs[0], *values), tuple(inputs), tuple(weights), dout)


@_inputs.register_fake
def _(dout: Tensor, inputs: list[Tensor], *rest: Any) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]


@torch.library.custom_op(
    "monet::mix_project_weights",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor[] inputs, Tensor[] weights, int[] wanted, {_STEP}) -> Tensor[]",
)
def _weights(
    dout: Tensor, inputs: list[Tensor], weights: list[Tensor], wanted: list[int], *values: Any
) -> list[Tensor]:
    return weight_gradients(_step(inputs[0], *values), tuple(inputs), wanted, dout)


@_weights.register_fake
def _(dout: Tensor, inputs: list[Tensor], weights: list[Tensor], wanted: list[int], *rest: Any) -> list[Tensor]:
    return [weights[n].new_empty(weights[n].shape) for n in wanted]


def _autograd_in_an_operator() -> Any:
    """Let an operator's own code use autograd, which computes the gradients of a masked mixing."""
    return torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    step_inputs, weights, *ctx.values, keep, index = inputs
    ctx.num_inputs = len(step_inputs)
    ctx.save_for_backward(keep, index, *step_inputs, *weights)


def _differentiate(ctx: Any, dout_TD: Tensor) -> tuple[Any, ...]:
    keep, index, *saved = ctx.saved_tensors
    inputs, weights = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
    values = (*ctx.values, keep, index)
    wants_inputs, wants_weights, *_ = ctx.needs_input_grad
    wanted = [n for n, wants in enumerate(wants_weights) if wants]
    dweights: list[Tensor | None] = [None] * len(weights)
    # The weights' gradients come first: they are the largest arrays, and are accumulated and freed before the others.
    if wanted:
        for n, dweight in zip(
            wanted, torch.ops.monet.mix_project_weights(dout_TD, inputs, weights, wanted, *values), strict=True
        ):
            dweights[n] = dweight
    dinputs: list[Tensor | None] = [None] * len(inputs)
    if any(wants_inputs):
        dinputs = list(torch.ops.monet.mix_project_inputs(dout_TD, inputs, weights, *values))
    return dinputs, dweights, *[None] * len(values)


_mix_project.register_autograd(_differentiate, setup_context=_save)
