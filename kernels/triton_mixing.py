"""A decomposition's Triton kernels as a `Mixing`, and as custom operators for torch.compile.

The formulas are in arXiv 2412.04139, eq. 10-29. The tests compare with the torch mixing of the same decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monet.kernels.activations import IDENTITY, RELU2, number_of
from monet.kernels.active_keys import active_keys
from monet.kernels.aot_case import AotCase
from monet.kernels.masked import Keep
from monet.kernels.mixing import Activation, Mixing
from monet.kernels.shared import UNKNOWN, Facts
from monet.kernels.triton_parts import DOT_DTYPES, tile

# Tiles and warps of each kind of kernel, for two-byte numbers. A tile that contains float32 numbers is half as large,
# since its products keep their operands in registers. A masked tile of two hidden halves then takes half the warps,
# with twice the registers each.
# benchmarks/gpu_suite.py --sweep tries others.
LAUNCH: dict[str, dict[str, int]] = {
    "mix": {"block": 64, "num_warps": 4, "num_stages": 2},
    "mix_backward": {"block": 64, "num_warps": 4, "num_stages": 2},
    "masked_mix": {"block": 32, "num_warps": 4, "num_stages": 2},
    "masked_mix_backward": {"block": 32, "num_warps": 4, "num_stages": 2},
}


class Kernels(NamedTuple):
    """The four kernels of a decomposition.

    Pointer arguments have this order: pre-activations, g1, g2; with a mask the lists of active keys, their counts and
    keep-weights, then mask numbers; in backward the gradients of the results; then the outputs.
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
        """Empty arrays with the shapes that the mixing returns."""
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
        facts: Facts = UNKNOWN,
    ) -> None:
        """Run `mix` or `mix_backward`; with a mask, the masked kernels.

        Args:
            kind: "mix" or "mix_backward".
            inputs: pre-activations, g1 and g2.
            read, written: the further tensors that the kernel reads, and those that it writes.
            act: the activation's number.
            keep: the mask, or None.
            facts: what is known about g1 and g2; with facts the layers of a group share the lists of active keys.
        """
        (T, E, M), H = inputs[0].shape, inputs[-1].shape[1]
        if T == 0:
            return
        inputs, read = [[tensor.contiguous() for tensor in tensors] for tensors in (inputs, read)]
        constants: dict[str, Any] = {
            "E": E, "M": M, "H": H, "BLOCK_M": tile(M), "BLOCK_H": tile(H),
            "ACT": act, "DOT": DOT_DTYPES[inputs[0].dtype],
        }  # fmt: skip

        def start(kind: str, block_name: str, *extra: Tensor, **more: bool) -> None:
            block, parameters = _launch_parameters(kind, max(x.itemsize for x in inputs), self.num_hidden)
            options = constants | {block_name: block} | more | parameters
            getattr(self, kind)[(T,)](*inputs, *extra, *read, *written, **options)

        on_device = torch.cuda.device(inputs[0].device) if inputs[0].is_cuda else nullcontext()
        with on_device:
            if keep is None:
                start(kind, "BLOCK_E", inputs[0], EXEMPT=False)
                return
            for tensor in written:
                tensor.zero_()
            (idx1_TE, count1_T), (idx2_TE, count2_T) = (
                active_keys(g_THE, known) for g_THE, known in zip(inputs[-2:], facts, strict=True)
            )
            weights_SEE = keep.weights_SEE.contiguous()
            weights_SEE = weights_SEE.view(torch.uint8) if weights_SEE.dtype == torch.bool else weights_SEE
            per_token = keep.index_T is not None
            index_T = keep.index_T.contiguous() if keep.index_T is not None else count1_T
            lists = (idx1_TE, idx2_TE, count1_T, count2_T)
            start(f"masked_{kind}", "BLOCK_U", *lists, weights_SEE, index_T, PER_TOKEN=per_token)
            if per_token:
                start(kind, "BLOCK_E", index_T, EXEMPT=True)


def _launch_parameters(kind: str, itemsize: int, num_hidden: int) -> tuple[int, dict[str, int]]:
    """Tile and launch options; `itemsize` is the size in bytes of the widest number among pre-activations and gates."""
    parameters = dict(LAUNCH[kind])
    block = parameters.pop("block")
    if itemsize < 4:
        return block, parameters
    if kind.startswith("masked") and num_hidden == 2:
        parameters["num_warps"] = max(1, parameters["num_warps"] // 2)
    return max(16, block // 2), parameters


def triton_mixing(kernels: Kernels) -> Mixing:
    """The mixing that runs on these kernels; registers the operators monet::<name> and monet::<name>_backward."""
    operator = _register(kernels)

    def forward(
        hidden: tuple[Tensor, ...],
        g1_THE: Tensor,
        g2_THE: Tensor,
        activation: Activation,
        keep: Keep | None,
        facts: Facts = UNKNOWN,
    ) -> tuple[Tensor, ...]:
        act = number_of(activation)
        if act is None:
            act, hidden = IDENTITY, tuple(activation(h) for h in hidden)
        if _is_plain((*hidden, g1_THE, g2_THE)):
            results = kernels.results(hidden[0])
            kernels.launch("mix", (*hidden, g1_THE, g2_THE), (), results, act, keep, facts)
            return tuple(results)
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
        facts: Facts = UNKNOWN,
    ) -> None:
        act = number_of(activation)
        if act is not None:
            kernels.launch("mix_backward", (*hidden, g1_THE, g2_THE), dmixed, dinputs, act, keep, facts)
            return
        leaves = [h.detach().requires_grad_() for h in hidden]
        with torch.enable_grad():
            activated = [activation(leaf) for leaf in leaves]
        inputs = (*(a.detach() for a in activated), g1_THE, g2_THE)
        kernels.launch("mix_backward", inputs, dmixed, dinputs, IDENTITY, keep, facts)
        for whole, part in zip(dinputs, torch.autograd.grad(activated, leaves, dinputs[: len(leaves)]), strict=False):
            whole.copy_(part)

    return Mixing(forward, backward)


def _is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether kernels can start immediately: nothing is traced or differentiated, and the tensors have memory."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)):
        return False
    return all(type(x) in (Tensor, nn.Parameter) for x in tensors)


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
    """Launches for the 1.4B model's layer: 512 keys, 8 heads, 16 hidden units an expert, in all data types."""
    cases = []
    for kind in ("mix", "mix_backward"):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            cases.append(_aot_case(kernels, kind, dtype))
            cases.append(_aot_case(kernels, f"masked_{kind}", dtype, PER_TOKEN=True))
        cases.append(_aot_case(kernels, kind, torch.bfloat16, ", fp32 gates", gates="fp32"))
        cases.append(_aot_case(kernels, f"masked_{kind}", torch.bfloat16, ", fp32 gates", gates="fp32", PER_TOKEN=True))
        cases.append(_aot_case(kernels, f"masked_{kind}", torch.bfloat16, ", one fp32 mask", mask="fp32"))
        for dtype in (torch.bfloat16, torch.float32):
            cases.append(_aot_case(kernels, kind, dtype, ", exempt tokens", EXEMPT=True))
    return cases


def _aot_case(
    kernels: Kernels, kind: str, dtype: torch.dtype, suffix: str = "", gates: str = "", mask: str = "u8", **flags: bool
) -> AotCase:
    kernel, short = getattr(kernels, kind), {torch.float32: "fp32", torch.float16: "fp16"}.get(dtype, "bf16")
    pointers = [argument for argument in kernel.arg_names if argument.endswith("_ptr")]
    types = {
        "idx1_ptr": "*i16", "idx2_ptr": "*i16", "count1_ptr": "*i32", "count2_ptr": "*i32",
        "keep_ptr": f"*{mask}", "mask_ptr": "*i64",
        **dict.fromkeys(("g1_ptr", "g2_ptr", "dg1_ptr", "dg2_ptr"), f"*{gates or short}"),
    }  # fmt: skip
    block, launch = _launch_parameters(kind, 4 if gates == "fp32" else dtype.itemsize, kernels.num_hidden)
    E, H, M = 512, 8, 16 // kernels.num_hidden
    constants: dict[str, Any] = {
        "E": E, "M": M, "H": H, "BLOCK_M": tile(M), "BLOCK_H": tile(H), "ACT": RELU2, "DOT": DOT_DTYPES[dtype],
    }  # fmt: skip
    constants |= (
        {"BLOCK_U": block, "PER_TOKEN": False} if kind.startswith("masked") else {"BLOCK_E": block, "EXEMPT": False}
    )
    return AotCase(
        f"{kernels.name} {kind} {short}{suffix}",
        kernel,
        {pointer: types.get(pointer, f"*{short}") for pointer in pointers},
        constants | flags,
        **launch,
        divisible_by_16=tuple(pointers),
    )
