"""A decomposition's Triton kernels as a `Mixing`, and as custom operators that torch.compile can look past.

Source of the formulas: arXiv 2412.04139, eq. 10-29; the oracle is the torch mixing of the same decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monet.kernels.activations import IDENTITY, RELU2, number_of
from monet.kernels.active_keys import active_keys
from monet.kernels.aot_case import AotCase
from monet.kernels.masked import Keep
from monet.kernels.mixing import Activation, Mixing
from monet.kernels.triton_parts import DOT_DTYPES, tile

# Tiles and warps of each kind of kernel, for two-byte numbers; tiles of float32 are half as large, since its products
# keep their operands in registers. benchmarks/gpu_suite.py --sweep tries others.
LAUNCH: dict[str, dict[str, int]] = {
    "mix": {"block": 64, "num_warps": 4, "num_stages": 2},
    "mix_backward": {"block": 64, "num_warps": 4, "num_stages": 2},
    "masked_mix": {"block": 32, "num_warps": 4, "num_stages": 2},
    "masked_mix_backward": {"block": 32, "num_warps": 4, "num_stages": 2},
}


class Kernels(NamedTuple):
    """The four kernels of a decomposition.

    Pointer arguments come in one order: pre-activations, g1, g2, with a mask the lists of active keys, their counts,
    keep-weights and mask numbers, in backward the gradients of the results, then what is written.
    """

    name: str
    num_hidden: int
    wide_results: int
    narrow_results: int
    mix: Any
    mix_backward: Any
    masked_mix: Any
    masked_mix_backward: Any

    def results(self, p_TEM: Tensor) -> list[Tensor]:
        """Empty arrays of the shapes the mixing returns."""
        wide = [torch.empty_like(p_TEM, memory_format=torch.contiguous_format) for _ in range(self.wide_results)]
        return wide + [p_TEM.new_empty(p_TEM.shape[:2]) for _ in range(self.narrow_results)]

    def launch(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        read: Sequence[Tensor],
        written: Sequence[Tensor],
        act: int,
        keep: Keep | None,
    ) -> None:
        """Run `mix` or `mix_backward`, under a mask if one is given; `inputs` are pre-activations, g1 and g2."""
        (T, E, M), H = inputs[0].shape, inputs[-1].shape[1]
        if T == 0:
            return
        inputs = [tensor.contiguous() for tensor in inputs]
        constants: dict[str, Any] = {
            "E": E, "M": M, "H": H, "BLOCK_M": tile(M), "BLOCK_H": tile(H),
            "ACT": act, "DOT": DOT_DTYPES[inputs[0].dtype],
        }  # fmt: skip
        on_device = torch.cuda.device(inputs[0].device) if inputs[0].is_cuda else nullcontext()
        with on_device:
            extra: list[Tensor] = []
            if keep is not None:
                kind = f"masked_{kind}"
                for tensor in written:
                    tensor.zero_()
                (idx1_TE, count1_T), (idx2_TE, count2_T) = (active_keys(g_THE) for g_THE in inputs[-2:])
                weights_SEE = keep.weights_SEE.contiguous()
                weights_SEE = weights_SEE.view(torch.uint8) if weights_SEE.dtype == torch.bool else weights_SEE
                index_T = count1_T if keep.index_T is None else keep.index_T.contiguous()
                extra = [idx1_TE, idx2_TE, count1_T, count2_T, weights_SEE, index_T]
                constants["PER_TOKEN"] = keep.index_T is not None
            block, parameters = _launch_parameters(kind, inputs[0].dtype)
            constants["BLOCK_E" if keep is None else "BLOCK_U"] = block
            pointers = [*inputs, *extra, *(tensor.contiguous() for tensor in read), *written]
            getattr(self, kind)[(T,)](*pointers, **constants, **parameters)


def _launch_parameters(kind: str, dtype: torch.dtype) -> tuple[int, dict[str, int]]:
    parameters = dict(LAUNCH[kind])
    block = parameters.pop("block")
    return (max(16, block // 2) if dtype.itemsize == 4 else block), parameters


def triton_mixing(kernels: Kernels) -> Mixing:
    """The mixing that runs on these kernels; registers the operators monet::<name> and monet::<name>_backward."""
    operator = _register(kernels)

    def forward(
        hidden: tuple[Tensor, ...], g1_THE: Tensor, g2_THE: Tensor, activation: Activation, keep: Keep | None
    ) -> tuple[Tensor, ...]:
        act = number_of(activation)
        if act is None:
            act, hidden = IDENTITY, tuple(activation(h) for h in hidden)
        weights, index = (None, None) if keep is None else (keep.weights_SEE, keep.index_T)
        return tuple(operator(list(hidden), g1_THE, g2_THE, act, weights, index))

    def backward(
        hidden: tuple[Tensor, ...],
        g1_THE: Tensor,
        g2_THE: Tensor,
        activation: Activation,
        keep: Keep | None,
        dmixed: list[Tensor],
        dinputs: list[Tensor],
    ) -> None:
        act = number_of(activation)
        if act is not None:
            kernels.launch("mix_backward", (*hidden, g1_THE, g2_THE), dmixed, dinputs, act, keep)
            return
        leaves = [h.detach().requires_grad_() for h in hidden]
        with torch.enable_grad():
            activated = [activation(leaf) for leaf in leaves]
        inputs = (*(a.detach() for a in activated), g1_THE, g2_THE)
        kernels.launch("mix_backward", inputs, dmixed, dinputs, IDENTITY, keep)
        for whole, part in zip(dinputs, torch.autograd.grad(activated, leaves, dinputs[: len(leaves)]), strict=False):
            whole.copy_(part)

    return Mixing(forward, backward)


def _register(kernels: Kernels) -> Any:
    arguments = "Tensor[] hidden, Tensor g1, Tensor g2, int act, Tensor? keep, Tensor? index"

    def keep_of(keep: Tensor | None, index: Tensor | None) -> Keep | None:
        return None if keep is None else Keep(keep, index)

    def forward(hidden, g1, g2, act, keep, index) -> list[Tensor]:
        results = kernels.results(hidden[0])
        kernels.launch("mix", (*hidden, g1, g2), (), results, act, keep_of(keep, index))
        return results

    def backward(hidden, g1, g2, act, keep, index, dmixed) -> list[Tensor]:
        dinputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*hidden, g1, g2)]
        kernels.launch("mix_backward", (*hidden, g1, g2), dmixed, dinputs, act, keep_of(keep, index))
        return dinputs

    forward_op = torch.library.custom_op(
        f"monet::{kernels.name}", forward, mutates_args=(), schema=f"({arguments}) -> Tensor[]"
    )
    backward_op = torch.library.custom_op(
        f"monet::{kernels.name}_backward",
        backward,
        mutates_args=(),
        schema=f"({arguments}, Tensor[] dmixed) -> Tensor[]",
    )
    forward_op.register_fake(lambda hidden, g1, g2, act, keep, index: kernels.results(hidden[0]))
    backward_op.register_fake(
        lambda hidden, g1, g2, act, keep, index, dmixed: [
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*hidden, g1, g2)
        ]
    )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        hidden, g1, g2, act, keep, index = inputs
        ctx.act = act
        ctx.save_for_backward(keep, index, *hidden, g1, g2)

    def differentiate(ctx: Any, dmixed: list[Tensor]) -> tuple[Any, ...]:
        keep, index, *hidden, g1, g2 = ctx.saved_tensors
        *dhidden, dg1, dg2 = backward_op(hidden, g1, g2, ctx.act, keep, index, list(dmixed))
        return dhidden, dg1, dg2, None, None, None

    forward_op.register_autograd(differentiate, setup_context=setup_context)
    return forward_op


def aot_cases(kernels: Kernels) -> list[AotCase]:
    """Launches at the 1.4B model's layer: 512 keys, 8 heads, 16 hidden units an expert; bfloat16 and float32."""
    E, H, M = 512, 8, 16 // kernels.num_hidden
    cases = []
    for dtype, dot in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for kind, masked in (("mix", False), ("mix_backward", False), ("mix", True), ("mix_backward", True)):
            name = f"masked_{kind}" if masked else kind
            kernel = getattr(kernels, name)
            pointers = [argument for argument in kernel.arg_names if argument.endswith("_ptr")]
            types = {
                "idx1_ptr": "*i16", "idx2_ptr": "*i16", "count1_ptr": "*i32", "count2_ptr": "*i32",
                "keep_ptr": "*u8", "mask_ptr": "*i64",
            }  # fmt: skip
            constants: dict[str, Any] = {
                "E": E, "M": M, "H": H, "BLOCK_M": tile(M), "BLOCK_H": tile(H),
                "ACT": RELU2, "DOT": DOT_DTYPES[dot],
            }  # fmt: skip
            constants["BLOCK_U" if masked else "BLOCK_E"], launch = _launch_parameters(name, dot)
            constants |= {"PER_TOKEN": True} if masked else {}
            signature = {pointer: types.get(pointer, f"*{dtype}") for pointer in pointers}
            cases.append(
                AotCase(
                    f"{kernels.name} {name} {dtype}",
                    kernel,
                    signature,
                    constants,
                    **launch,
                    divisible_by_16=tuple(pointers),
                )
            )
    return cases
