"""The routing ops in Triton, as custom operators for torch.compile.

The formulas are in arXiv 2412.04139, section 3. The tests compare with `monet.kernels.routing.reference`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from monet.kernels.aot_case import AotCase
from monet.kernels.routing import triton_kernels as kernels
from monet.kernels.routing.reference import BatchStatistics, RoutingSums, Spread

# Launch parameters of each kernel. benchmarks/gpu_suite.py --sweep tries others.
#   entries_per_warp: entries of a tile for each warp; 16 a thread leave registers for the sums over tokens.
#   programs: the smallest number of programs to aim for.
#   max_tokens: most tokens of a program that sums over them and writes one row for all. max_tokens_apart: the same for
#       a program that does not sum.
#   num_stages: number of tiles in flight from memory at a time.
LAUNCH: dict[str, dict[str, int]] = {
    "moments": {"entries_per_warp": 512, "programs": 2048, "max_tokens": 64, "num_stages": 4},
    "forward": {
        "entries_per_warp": 512, "programs": 2048, "max_tokens": 64, "max_tokens_apart": 8, "num_stages": 3,
    },
    "backward": {
        "entries_per_warp": 512, "programs": 2048, "max_tokens": 64, "max_tokens_apart": 8, "num_stages": 3,
    },
}  # fmt: skip
_MAX_WARPS = 16
_MERGE_BLOCK = 256
_SHARES: dict[Spread, int] = {
    "routing": kernels.NO_SHARE,
    "softmax": kernels.SOFTMAX_SHARE,
    "firing": kernels.FIRING_SHARE,
}


class Launch(NamedTuple):
    """Launch parameters of one kernel for rows of E keys."""

    kind: str
    E: int
    block_e: int
    block_t: int
    num_warps: int

    @classmethod
    def of(cls, kind: str, E: int) -> Launch:
        per_warp, block_e = LAUNCH[kind]["entries_per_warp"], int(triton.next_power_of_2(E))
        block_t = max(1, per_warp // block_e)
        return cls(kind, E, block_e, block_t, min(_MAX_WARPS, max(1, block_e * block_t // per_warp)))

    def tokens(self, T: int, H: int, adds_up: bool) -> int:
        """Tokens per program: a power of two and whole tiles, few enough that the programs fill the device."""
        parameters = LAUNCH[self.kind]
        wanted = int(triton.next_power_of_2(max(1, T * H // parameters["programs"])))
        return max(self.block_t, min(parameters["max_tokens" if adds_up else "max_tokens_apart"], wanted))

    def constants(self) -> dict[str, Any]:
        stages = LAUNCH[self.kind]["num_stages"]
        return {"E": self.E, "BLOCK_E": self.block_e, "BLOCK_T": self.block_t, "STAGES": stages}

    def options(self) -> dict[str, Any]:
        """Constants and launch options, by keyword."""
        return self.constants() | {"num_warps": self.num_warps}


def thresholded_softmax(z_TP: Tensor, threshold_H: Tensor, overwrite: bool, dtype: torch.dtype | None = None) -> Tensor:
    """See `monet.kernels.routing.op.thresholded_softmax`; the logits are never overwritten."""
    return torch.ops.monet.routing(z_TP, threshold_H, None, None, False, kernels.NO_SHARE, dtype or torch.float32)[0]


def route_with_losses(
    z_TP: Tensor,
    threshold_H: Tensor,
    weight_T: Tensor | None,
    width_H: Tensor | None,
    spread: Spread,
    overwrite: bool,
    dtype: torch.dtype | None = None,
) -> RoutingSums:
    """See `monet.kernels.routing.op.route_with_losses`; the logits are never overwritten."""
    H, P = threshold_H.numel(), z_TP.shape[1]
    share = _SHARES[spread]
    g_TP, sums = torch.ops.monet.routing(
        z_TP, threshold_H, weight_T, width_H, True, share, dtype or torch.float32
    )  # fmt: skip
    parts = sums.split([*[P] * _num_arrays(share), H])
    mean_HE, fired_HE, *share_HE = (part.view(H, P // H) for part in parts[:-1])
    return RoutingSums(g_TP, mean_HE, parts[-1], fired_HE.detach().long(), share_HE[0] if share_HE else None)


def batch_statistics(z_BTHE: Tensor, token_mask_BT: Tensor | None = None) -> BatchStatistics:
    """See `monet.kernels.routing.reference.batch_statistics`."""
    H = z_BTHE.shape[2]
    mask_T = None if token_mask_BT is None else token_mask_BT.reshape(-1)
    moments_3H = torch.ops.monet.routing_moments(z_BTHE.detach().flatten(0, 1).flatten(1), mask_T, H)
    return BatchStatistics(moments_3H[0, 0], moments_3H[1], moments_3H[2])


def _num_arrays(share: int) -> int:
    return 2 if share == kernels.NO_SHARE else 3


def _run(kernel: Any, programs: int, *arguments: Tensor | int, **options: Any) -> None:
    """Start this number of programs of a kernel, on the device of its first argument."""
    first = arguments[0]
    on_device = torch.cuda.device(first.device) if isinstance(first, Tensor) and first.is_cuda else nullcontext()
    with on_device:
        kernel[(programs,)](*arguments, **options)


def _rows(x_TP: Tensor) -> Tensor:
    """The tensor if each row is contiguous, else a copy."""
    return x_TP if x_TP.stride(1) == 1 or x_TP.shape[1] == 1 else x_TP.contiguous()


@torch.library.custom_op(
    "monet::routing_moments", mutates_args=(), schema="(Tensor z, Tensor? mask, int num_heads) -> Tensor"
)
def _moments(z: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    (T, P), H = z.shape, num_heads
    E = P // H
    moments_3H = z.new_empty((3, H), dtype=torch.float64)
    if T == 0:
        return moments_3H.zero_()
    z, launch = _rows(z), Launch.of("moments", E)
    tokens = launch.tokens(T, H, adds_up=True)
    num_parts = int(triton.cdiv(T, tokens))
    slots = num_parts * launch.block_t
    partial = z.new_empty((H, 3, slots), dtype=torch.float64)
    mask = None if mask is None else mask.contiguous().view(torch.uint8)
    _run(
        kernels.moments, num_parts * H, z, z if mask is None else mask, partial, T, z.stride(0), H, tokens, slots,
        MASKED=mask is not None, **launch.options(),
    )  # fmt: skip
    _run(kernels.merge_moments, H, partial, moments_3H, H, slots, E=E, BLOCK=_MERGE_BLOCK)
    return moments_3H


@_moments.register_fake
def _(z: Tensor, mask: Tensor | None, num_heads: int) -> Tensor:
    return z.new_empty((3, num_heads), dtype=torch.float64)


@torch.library.custom_op(
    "monet::routing",
    mutates_args=(),
    schema="(Tensor z, Tensor threshold, Tensor? weight, Tensor? width, bool with_sums, int share, ScalarType dtype)"
    " -> (Tensor, Tensor)",
)
def _routing(
    z: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    width: Tensor | None,
    with_sums: bool,
    share: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    (T, P), H = z.shape, threshold.numel()
    E = P // H
    g, sums = z.new_empty((T, P), dtype=dtype), _empty_sums(z, H, with_sums, share)
    if T == 0:
        return g, sums.zero_()
    z, launch = _rows(z), Launch.of("forward", E)
    tokens = launch.tokens(T, H, adds_up=with_sums)
    num_parts = int(triton.cdiv(T, tokens))
    partial = z.new_empty((num_parts, *sums.shape), dtype=torch.float32)
    _run(
        kernels.forward, num_parts * H, z, threshold.contiguous(), z if weight is None else weight.contiguous(),
        z if width is None else width.contiguous(), g, partial, T, z.stride(0), H, tokens,
        SUMS=with_sums, WEIGHTED=weight is not None, SHARE=share, **launch.options(),
    )  # fmt: skip
    return g, torch.sum(partial, 0) if with_sums else sums


@_routing.register_fake
def _(
    z: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    width: Tensor | None,
    with_sums: bool,
    share: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape, dtype=dtype), _empty_sums(z, threshold.numel(), with_sums, share)


def _empty_sums(z: Tensor, H: int, with_sums: bool, share: int) -> Tensor:
    return z.new_empty(_num_arrays(share) * z.shape[1] + H if with_sums else 0, dtype=torch.float32)


@torch.library.custom_op(
    "monet::routing_backward",
    mutates_args=(),
    schema="(Tensor saved, Tensor dg, Tensor threshold, Tensor? weight, Tensor? width, Tensor? dsums, int share,"
    " bool from_logits, ScalarType dtype) -> Tensor",
)
def _routing_backward(
    saved: Tensor,
    dg: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    width: Tensor | None,
    dsums: Tensor | None,
    share: int,
    from_logits: bool,
    dtype: torch.dtype,
) -> Tensor:
    (T, P), H = saved.shape, threshold.numel()
    E = P // H
    dz = saved.new_empty((T, P), dtype=dtype)
    if T == 0:
        return dz
    saved, launch = _rows(saved), Launch.of("backward", E)
    # Each program reads the gradients of the sums once.
    tokens = launch.tokens(T, H, adds_up=dsums is not None)
    _run(
        kernels.backward, int(triton.cdiv(T, tokens)) * H, saved, dg.contiguous(), threshold.contiguous(),
        saved if weight is None else weight.contiguous(), saved if width is None else width.contiguous(),
        saved if dsums is None else dsums.contiguous(), dz, T, saved.stride(0), H, tokens,
        SUMS=dsums is not None, WEIGHTED=weight is not None, SHARE=share, FROM_LOGITS=from_logits,
        **launch.options(),
    )  # fmt: skip
    return dz


@_routing_backward.register_fake
def _(
    saved: Tensor,
    dg: Tensor,
    threshold: Tensor,
    weight: Tensor | None,
    width: Tensor | None,
    dsums: Tensor | None,
    share: int,
    from_logits: bool,
    dtype: torch.dtype,
) -> Tensor:
    return saved.new_empty(saved.shape, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, threshold, weight, width, ctx.with_sums, ctx.share, dtype = inputs
    # A layer that mixes keeps the probabilities anyway. The gradient of a share needs the logits, which also give the
    # probabilities. The gradient of the mean maximum needs the probabilities before rounding, which may make keys tie.
    ctx.from_logits = ctx.share != kernels.NO_SHARE or (ctx.with_sums and dtype.itemsize < 4)
    ctx.save_for_backward(z if ctx.from_logits else output[0], threshold, weight, width)
    ctx.dtype = z.dtype


def _differentiate(ctx: Any, dg: Tensor, dsums: Tensor) -> tuple[Any, ...]:
    saved, threshold, weight, width = ctx.saved_tensors
    dz = torch.ops.monet.routing_backward(
        saved, dg, threshold, weight, width, dsums if ctx.with_sums else None, ctx.share, ctx.from_logits, ctx.dtype
    )
    return dz, None, None, None, None, None, None


_routing.register_autograd(_differentiate, setup_context=_save)


def _aot_cases() -> list[AotCase]:
    """Launches for the 1.4B shape: 8 heads of 512 keys; the training loss uses the smooth step at the threshold."""
    E = 512
    counts = ("num_tokens", "num_heads", "tokens")
    cases = []

    def add(name: str, kind: str, pointers: dict[str, str], stride: str, T: int = 0, **constants: Any) -> None:
        kernel, launch = getattr(kernels, kind), Launch.of(kind, E)
        arguments = (*counts, stride, *(("num_slots",) if kind == "moments" else ()))
        # Triton treats an argument that is 1 as a constant.
        fixed = {"num_tokens": 1, "tokens": 1} if T == 1 else {}
        signature = {f"{pointer}_ptr": f"*{dtype}" for pointer, dtype in pointers.items()}
        signature |= {argument: "i32" for argument in arguments if argument not in fixed}
        divisible = tuple(argument for argument in signature if argument != "num_heads")
        cases.append(
            AotCase(
                f"routing_{name}", kernel, signature, launch.constants() | fixed | constants,
                num_warps=launch.num_warps, divisible_by_16=divisible,
            )
        )  # fmt: skip

    for z in ("bf16", "fp32", "fp16"):
        add(f"moments_{z}", "moments", {"z": z, "mask": "u8", "partial": "fp64"}, "z_stride", MASKED=True)
        for g in {"bf16": ("bf16", "fp32"), "fp32": ("fp32",), "fp16": ("fp16",)}[z]:
            ends = {"threshold": "fp64", "weight": "fp32", "width": "fp64"}
            into, back = {"z": z, **ends, "g": g, "sums": "fp32"}, {"dg": g, **ends, "dsums": "fp32", "dz": z}
            from_g, from_z = {"saved": g, **back}, {"saved": z, **back}
            plain = {"SUMS": False, "WEIGHTED": False, "SHARE": kernels.NO_SHARE}
            firing = {"SUMS": True, "WEIGHTED": True, "SHARE": kernels.FIRING_SHARE}
            paper = {"SUMS": True, "WEIGHTED": False, "SHARE": kernels.NO_SHARE}
            pair = f"{z}_{g}"
            add(f"forward_{pair}", "forward", into, "z_stride", **plain)
            add(f"forward_losses_{pair}", "forward", into, "z_stride", **firing)
            add(f"backward_{pair}", "backward", from_g, "saved_stride", **plain, FROM_LOGITS=False)
            add(f"backward_losses_{pair}", "backward", from_z, "saved_stride", **firing, FROM_LOGITS=True)
            if z == g == "bf16":
                add(f"backward_paper_{pair}", "backward", from_z, "saved_stride", **paper, FROM_LOGITS=True)
                add(f"forward_one_token_{pair}", "forward", into, "z_stride", T=1, **plain)
    cases.append(
        AotCase(
            "routing_merge_moments", kernels.merge_moments,
            {"partial_ptr": "*fp64", "moments_ptr": "*fp64", "num_heads": "i32", "num_slots": "i32"},
            {"E": E, "BLOCK": _MERGE_BLOCK}, divisible_by_16=("partial_ptr", "moments_ptr", "num_slots"),
        )
    )  # fmt: skip
    return cases


AOT: list[AotCase] = _aot_cases()
