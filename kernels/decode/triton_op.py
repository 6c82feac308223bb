"""Launches of the Triton kernels that read only active keys, as custom operators for torch.compile.

The formulas are in arXiv 2412.04139, eq. 10-29. The tests compare the results with the dense layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from monet.kernels.activations import IDENTITY, RELU2, number_of
from monet.kernels.aot_case import AotCase
from monet.kernels.decode import triton_kernels as kernels
from monet.kernels.masked import Keep
from monet.kernels.mixing import Activation

# Chosen for one token with about 60 active keys of 16 rows of 4 KiB, as in the 1.4B model at k = 8, on 132
# multiprocessors. There `hidden` has about 240 programs with 16 KiB each and `output` has 128 with 32 KiB, and all
# these loads are in flight at once. Not measured.
#   hidden: elements of a row and of a tile; tokens per program.
#   mix: programs per token, and keys at a time.
#   output: columns per program, and elements of a tile.
LAUNCH: dict[str, dict[str, int]] = {
    "hidden": {"block_d": 2048, "elements": 8192, "tokens": 16, "num_warps": 8},
    "mix": {"programs": 128, "block_u": 128, "num_warps": 4},
    "output": {"block_d": 16, "elements": 16384, "num_warps": 8},
}


def hidden_constants(T: int, E: int, M: int, H: int, D: int, sides: int, act: int) -> dict[str, Any]:
    """The constants of a launch of `hidden_kernel`, and its warps."""
    launch = LAUNCH["hidden"]
    block_d = min(launch["block_d"], triton.next_power_of_2(D))
    block_m = max(1, min(launch["elements"] // launch["block_d"], triton.next_power_of_2(M)))
    return {
        "E": E, "M": M, "H": H, "D": D, "SIDES": sides, "ACT": act,
        "BLOCK_T": min(launch["tokens"], triton.next_power_of_2(T)), "BLOCK_H": triton.next_power_of_2(H),
        "BLOCK_E": triton.next_power_of_2(E), "BLOCK_M": block_m, "BLOCK_D": block_d, "num_warps": launch["num_warps"],
    }  # fmt: skip


def mix_constants(E: int, M: int, H: int, sides: int, masked: bool, per_token: bool) -> dict[str, Any]:
    """The constants of a launch of `mix_kernel`, and its warps."""
    launch = LAUNCH["mix"]
    return {
        "E": E, "M": M, "H": H, "SIDES": sides, "PROGRAMS": min(launch["programs"], E), "MASKED": masked,
        "PER_TOKEN": per_token, "BLOCK_U": min(launch["block_u"], triton.next_power_of_2(E)),
        "BLOCK_M": triton.next_power_of_2(M), "BLOCK_H": triton.next_power_of_2(H), "num_warps": launch["num_warps"],
    }  # fmt: skip


def output_constants(E: int, M: int, W: int, sides: int, strides: tuple[int, int], itemsize: int) -> dict[str, Any]:
    """The constants of a launch of `output_kernel`, and its warps. Tiles of four-byte numbers are half as large."""
    launch = LAUNCH["output"]
    block_m, block_d = triton.next_power_of_2(M), min(launch["block_d"], triton.next_power_of_2(W))
    elements = launch["elements"] // (2 if itemsize == 4 else 1) // sides
    block_k = max(1, min(elements // (block_m * block_d), triton.next_power_of_2(E)))
    return {
        "E": E, "M": M, "W": W, "SIDES": sides, "ROW": strides[0], "COLUMN": strides[1],
        "BLOCK_K": block_k, "BLOCK_M": block_m, "BLOCK_D": block_d, "num_warps": launch["num_warps"],
    }  # fmt: skip


def active_experts(
    x_TD: Tensor,
    g1_THE: Tensor,
    g2_THE: Tensor,
    first: tuple[Tensor, ...],
    projections: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    activation: Activation,
    keep: Keep | None,
) -> Tensor:
    """A layer of either form over active keys; arguments are checked by `monet.kernels.decode.op` and share one dtype.

    If no kernel fuses the activation, torch applies it to all hidden units. Those of inactive keys are uninitialised
    memory and are never read.
    """
    act = number_of(activation)
    units, biases_of_units = list(first[::2]), list(first[1::2])
    hidden_STEM, keys_2TE, count_2T = gathered_hidden(
        x_TD, g1_THE, g2_THE, units, biases_of_units, IDENTITY if act is None else act
    )
    if act is None:
        hidden_STEM = activation(hidden_STEM)
    weights_SEE, index_T = (None, None) if keep is None else (keep.weights_SEE, keep.index_T)
    return gathered_output(
        hidden_STEM, keys_2TE, count_2T, g1_THE, g2_THE, weights_SEE, index_T, list(projections), list(biases)
    )


def _hidden_results(x: Tensor, g1: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    T, _, E = g1.shape
    return (
        x.new_empty((len(weights), T, E, weights[0].shape[0] // E), dtype=torch.float32),
        x.new_empty((2, T, E), dtype=torch.int32),
        x.new_empty((2, T), dtype=torch.int32),
    )


@torch.library.custom_op("monet::gathered_hidden", mutates_args=())
def gathered_hidden(
    x: Tensor, g1: Tensor, g2: Tensor, weights: list[Tensor], biases: list[Tensor], act: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden units of each token's active keys, float32, and lists of these keys; see `hidden_kernel`."""
    hidden, keys, count = _hidden_results(x, g1, weights)
    (T, D), (sides, _, E, M) = x.shape, hidden.shape
    if T:
        constants = hidden_constants(T, E, M, g1.shape[1], D, sides, act)
        x, g1, g2 = x.contiguous(), g1.contiguous(), g2.contiguous()
        weights, biases = ([tensor.contiguous() for tensor in tensors] for tensors in (weights, biases))
        programs = 2 * constants["BLOCK_T"] + sides * E * triton.cdiv(M, constants["BLOCK_M"])
        with _on_device(x):
            kernels.hidden_kernel[(programs, triton.cdiv(T, constants["BLOCK_T"]))](
                x, g1, g2, weights[0], weights[-1], biases[0], biases[-1], hidden, keys, count, T, **constants
            )
    return hidden, keys, count


@gathered_hidden.register_fake
def _(x, g1, g2, weights, biases, act):
    return _hidden_results(x, g1, weights)


@torch.library.custom_op("monet::gathered_output", mutates_args=())
def gathered_output(
    hidden: Tensor,
    keys: Tensor,
    count: Tensor,
    g1: Tensor,
    g2: Tensor,
    keep: Tensor | None,
    index: Tensor | None,
    projections: list[Tensor],
    biases: list[Tensor],
) -> Tensor:
    """The layer's output, computed from the results of `gathered_hidden`; see `mix_kernel` and `output_kernel`."""
    out = _output(g1, projections, biases)
    (sides, T, E, M), H, W = hidden.shape, g1.shape[1], biases[0].shape[1]
    if not T:
        return out
    hidden, g1, g2 = hidden.contiguous(), g1.contiguous(), g2.contiguous()
    mixed, share = torch.empty_like(hidden), hidden.new_empty(sides, T, E)
    weights, mask, masks = count, count, 0
    if keep is not None:
        weights, masks = keep.contiguous(), len(keep)
        weights = weights.view(torch.uint8) if weights.dtype == torch.bool else weights
        mask = count if index is None else index.contiguous()
    strides = _strides(projections[0])
    if strides is None or any(_strides(projection) != strides for projection in projections):
        projections, strides = [projection.contiguous() for projection in projections], (W, 1)
    biases = [bias.contiguous() for bias in biases]
    v11, v12, v21, v22 = projections if sides == 2 else [projections[0]] * 4
    constants = mix_constants(E, M, H, sides, keep is not None, keep is not None and index is not None)
    with _on_device(hidden):
        kernels.mix_kernel[(sides * constants["PROGRAMS"], T)](
            g1, g2, hidden, keys, count, weights, mask, mixed, share, T, masks, **constants
        )
        constants = output_constants(E, M, W, sides, strides, projections[0].element_size())
        kernels.output_kernel[(sides * triton.cdiv(W, constants["BLOCK_D"]), T)](
            hidden, mixed, share, keys, count, v11, v12, v21, v22, biases[0], biases[-1], out, T, **constants
        )
    return out


@gathered_output.register_fake
def _(hidden, keys, count, g1, g2, keep, index, projections, biases):
    return _output(g1, projections, biases)


def _output(g1: Tensor, projections: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return projections[0].new_empty(g1.shape[0], len(biases) * biases[0].shape[1])


def _strides(projection_PW: Tensor) -> tuple[int, int] | None:
    """Strides of an output weight whose rows or columns are contiguous; None if neither are."""
    if projection_PW.is_contiguous() or projection_PW.t().is_contiguous():
        return projection_PW.stride(0), projection_PW.stride(1)
    return None


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _aot_cases() -> list[AotCase]:
    """Launches at the 1.4B model's layer: 512 keys, 8 heads, 16 hidden units an expert, width 2048."""
    E, H, M, D = 512, 8, 16, 2048
    fixed = {"keys_ptr": "*i32", "count_ptr": "*i32", "keep_ptr": "*u8", "mask_ptr": "*i64", "T": "i32", "S": "i32"}
    fixed |= {f"{name}_ptr": "*fp32" for name in ("hidden", "mixed", "share")}
    cases = []

    def add(name: str, kernel: Any, dtype: str, constants: dict[str, Any], one_token: bool) -> None:
        pointers = [argument for argument in kernel.arg_names if argument.endswith("_ptr")]
        numbers = [argument for argument in ("T", "S") if argument in kernel.arg_names]
        signature = {argument: fixed.get(argument, f"*{dtype}") for argument in [*pointers, *numbers]}
        constants, num_warps = dict(constants), constants["num_warps"]
        del constants["num_warps"]
        if one_token:
            # Triton makes a runtime argument of 1 a constant
            del signature["T"]
            constants["T"] = 1
        cases.append(AotCase(name, kernel, signature, constants, num_warps, divisible_by_16=tuple(pointers)))

    for form, sides in (("horizontal", 1), ("vertical", 2)):
        m, w = M // sides, D // sides
        for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
            for T in (1, 8):
                name = f"active {form} {{}} {dtype} T={T}"
                constants = hidden_constants(T, E, m, H, D, sides, RELU2)
                add(name.format("hidden"), kernels.hidden_kernel, dtype, constants, T == 1)
                constants = output_constants(E, m, w, sides, (w, 1), itemsize)
                add(name.format("output"), kernels.output_kernel, dtype, constants, T == 1)
            constants = output_constants(E, m, w, sides, (1, E * m), itemsize)
            add(f"active {form} output in place {dtype} T=1", kernels.output_kernel, dtype, constants, True)
            for masked in (False, True):
                name = f"active {form} {'masked mix' if masked else 'mix'} {dtype} T=1"
                add(name, kernels.mix_kernel, dtype, mix_constants(E, m, H, sides, masked, masked), True)
    return cases


AOT = _aot_cases()
