"""Times one Monet layer on the CPU, an einsum formulation and a dense MLP, in turns in one process.

    python -m benchmarks.cpu_layer [--json FILE] [--quick]

Times are medians over rounds. Ratios are medians of the ratios of each round, and `speedup_low` and `speedup_high` are
quartiles. If `speedup_over_einsum` is above 1, our layer is faster. If `ratio_to_dense` is above 1, our layer is slower
than a dense MLP with as many multiply-adds as one expert layer. The router is timed separately; one router serves four
layers. Before timing, the command checks that both formulations agree. Memory is counted for each part separately, and
for a step of a routing group: one router and its four layers, without gradients of the weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from benchmarks.baseline import DenseSwiGLU, EinsumHorizontal, EinsumRouter, EinsumVertical
from benchmarks.measure import peak_bytes, saved_bytes, time_in_turns
from monet import MonetConfig
from monet.files import atomic_write_json
from monet.model.experts import HorizontalExperts, VerticalExperts
from monet.model.router import MonetRouter

MAX_RELATIVE_RMS = 1e-5
MAX_SHARE_REROUTED = 0.1
FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Plan:
    """Settings of the measurement: the layer's shape, the numbers of tokens, and the duration."""

    hidden_size: int = 2048
    experts: int = 512
    heads: int = 8
    expert_width: int = 16
    dense_width: int = 5632
    topks: tuple[int, ...] = (8, 32)
    settings: tuple[tuple[int, str], ...] = (
        (1, FORWARD), (1, BOTH), (128, FORWARD), (128, BOTH), (512, FORWARD), (512, BOTH), (2048, FORWARD),
    )  # fmt: skip
    memory_tokens: int = 512
    step_tokens: int = 2048
    group_layers: int = 4
    rounds: int = 4
    block_seconds: float = 0.3

    def config(self, topk: int, decompose: str) -> MonetConfig:
        return MonetConfig(
            hidden_size=self.hidden_size, num_attention_heads=self.heads, num_hidden_layers=1, vocab_size=64,
            moe_experts=self.experts, moe_heads=self.heads, moe_dim=self.expert_width, moe_topk=topk,
            moe_groups=4, moe_decompose=decompose,
        )  # fmt: skip


QUICK = Plan(
    32,
    16,
    2,
    4,
    88,
    (2, 4),
    ((1, FORWARD), (16, BOTH)),
    memory_tokens=16,
    step_tokens=32,
    rounds=3,
    block_seconds=0.002,
)


class Pair(NamedTuple):
    """Ours and the einsum formulation of one part of a layer, on the same weights."""

    part: str
    topk: int
    ours: nn.Module
    einsum: nn.Module


def build(plan: Plan) -> tuple[list[Pair], DenseSwiGLU]:
    """Modules with weights as at initialisation, biases away from zero so that their paths are checked."""
    torch.manual_seed(0)
    pairs = []
    for topk in plan.topks:
        horizontal, vertical = plan.config(topk, "horizontal"), plan.config(topk, "vertical")
        for part, ours, einsum in [
            ("router", MonetRouter(vertical), EinsumRouter(vertical)),
            ("horizontal", HorizontalExperts(horizontal), EinsumHorizontal(horizontal)),
            ("vertical", VerticalExperts(vertical), EinsumVertical(vertical)),
        ]:
            for parameter in ours.parameters():
                nn.init.normal_(parameter, std=0.02)
            einsum.load_state_dict(ours.state_dict(), assign=True)
            einsum.requires_grad_(True)
            pairs.append(Pair(part, topk, ours, einsum))
    dense = DenseSwiGLU(plan.hidden_size, plan.dense_width)
    return pairs, dense


class Inputs(NamedTuple):
    """x_BTD, routing probabilities from another router, and the gradient of the output."""

    x_BTD: Tensor
    gates: tuple[Tensor, Tensor]
    upstream_BTD: Tensor
    gate_upstream: tuple[Tensor, Tensor]


def make_inputs(plan: Plan, tokens: int, router: EinsumRouter) -> Inputs:
    """Normal inputs. The router's running statistics are set to those of its logits, so that about k keys act."""
    generator = torch.Generator().manual_seed(tokens)
    x_BTD = torch.randn(1, tokens, plan.hidden_size, generator=generator)
    with torch.no_grad():
        for w, norm in ((router.w1, router.norm1), (router.w2, router.norm2)):
            variance_H, mean_H = torch.var_mean(w(x_BTD).unflatten(-1, (plan.heads, plan.experts)), dim=(0, 1, 3))
            norm.load_state_dict({"running_mean": mean_H, "running_var": variance_H}, strict=False)
        g1_BTHE, g2_BTHE = router.eval()(x_BTD)
    upstream = [torch.randn(shape, generator=generator) for shape in (x_BTD.shape, g1_BTHE.shape, g1_BTHE.shape)]
    return Inputs(x_BTD, (g1_BTHE, g2_BTHE), upstream[0], (upstream[1], upstream[2]))


def runner(module: nn.Module, part: str, mode: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """A call that runs the module once; returns its outputs, and for forward+backward the input's gradients too."""
    learning = mode == BOTH
    x_BTD = inputs.x_BTD.clone().requires_grad_(learning)
    routed = part in ("horizontal", "vertical")
    gates = tuple(gate.clone().requires_grad_(learning) for gate in inputs.gates) if routed else ()
    module.train(learning)

    def forward() -> tuple[Tensor, ...]:
        output = module(x_BTD, *gates)
        if isinstance(module, MonetRouter):
            module.update_statistics(output)
            return output.g1_BTHE, output.g2_BTHE
        return output if isinstance(module, EinsumRouter) else (output,)

    def once() -> tuple[Tensor, ...]:
        if not learning:
            with torch.no_grad():
                return forward()
        for leaf in (x_BTD, *gates):
            leaf.grad = None
        outputs = forward()
        torch.autograd.backward(outputs, inputs.gate_upstream if part == "router" else (inputs.upstream_BTD,))
        gradients = [leaf.grad for leaf in (x_BTD, *gates) if leaf.grad is not None]
        return (*(output.detach() for output in outputs), *gradients)

    return once


def check_agreement(pair: Pair, mode: str, inputs: Inputs) -> None:
    """Raise unless both formulations give the same outputs and gradients.

    A logit within rounding of the threshold may fall on either side of it (torch's BatchNorm sums this layout in
    float32, so its batch variance is good to about four digits). Such tokens are left out for the router; they must
    be few.
    """
    for module in (pair.ours, pair.einsum):
        module.zero_grad(set_to_none=True)
    ours, einsum = (runner(module, pair.part, mode, inputs)() for module in (pair.ours, pair.einsum))
    same_T = torch.ones(inputs.x_BTD.shape[1], dtype=torch.bool)
    if pair.part == "router":
        for a, b in zip(ours[:2], einsum[:2], strict=True):
            same_T &= ((a > 0) == (b > 0)).flatten(2).all(-1)[0]
        if (~same_T).sum() > MAX_SHARE_REROUTED * same_T.numel() + 1:
            raise AssertionError(f"router, k={pair.topk}: {int((~same_T).sum())} tokens are routed to other keys")
    compared = [("output or gradient", a[:, same_T], b[:, same_T]) for a, b in zip(ours, einsum, strict=True)]
    if bool(same_T.all()):
        gradients = [{n: p.grad for n, p in side.named_parameters() if p.grad is not None} for side in pair[2:]]
        compared += [(name, gradient, gradients[1][name]) for name, gradient in gradients[0].items()]
    for name, a, b in compared:
        error = ((a - b).double().square().mean() / b.double().square().mean().clamp(min=1e-300)).sqrt().item()
        if not error <= MAX_RELATIVE_RMS:
            raise AssertionError(f"{pair.part}, k={pair.topk}, {mode}: {name} differs by {error:.1e} (relative rms)")


def time_rows(plan: Plan, pairs: list[Pair], dense: DenseSwiGLU) -> Iterator[list[dict[str, Any]]]:
    """For each number of tokens and mode, a row for each part and k."""
    routers = {pair.topk: pair.einsum for pair in pairs if isinstance(pair.einsum, EinsumRouter)}
    for tokens, mode in plan.settings:
        inputs = {topk: make_inputs(plan, tokens, router) for topk, router in routers.items()}
        runs: dict[str, Callable[[], object]] = {"dense": runner(dense, "dense", mode, inputs[plan.topks[0]])}
        for pair in pairs:
            check_agreement(pair, mode, inputs[pair.topk])
            runs[f"{pair.part} {pair.topk} ours"] = runner(pair.ours, pair.part, mode, inputs[pair.topk])
            runs[f"{pair.part} {pair.topk} einsum"] = runner(pair.einsum, pair.part, mode, inputs[pair.topk])
        samples = time_in_turns(runs, plan.rounds, plan.block_seconds)
        rows = []
        for pair in pairs:
            ours, einsum = (samples[f"{pair.part} {pair.topk} {side}"] for side in ("ours", "einsum"))
            rows.append(
                {
                    **shape_fields(plan, pair, tokens),
                    "mode": mode,
                    "ms_ours": statistics.median(ours),
                    "ms_einsum": statistics.median(einsum),
                    "ms_dense": statistics.median(samples["dense"]),
                    **_spread([e / o for e, o in zip(einsum, ours, strict=True)]),
                    "ratio_to_dense": statistics.median(o / d for o, d in zip(ours, samples["dense"], strict=True)),
                }
            )
        yield rows


def _spread(speedups: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(speedups, n=4, method="inclusive")
    return {"speedup_over_einsum": middle, "speedup_low": low, "speedup_high": high}


def memory_rows(plan: Plan, pairs: list[Pair], dense: DenseSwiGLU) -> Iterator[dict[str, Any]]:
    """Megabytes kept between forward and backward, and the peak of a forward+backward; k does not change either."""
    router = next(pair.einsum for pair in pairs if isinstance(pair.einsum, EinsumRouter))
    inputs = make_inputs(plan, plan.memory_tokens, router)
    of_dense = _memory(dense, "dense", inputs)
    for pair in pairs:
        if pair.topk == plan.topks[0]:
            row = shape_fields(plan, pair, plan.memory_tokens)
            for side, (saved, peak) in {
                "ours": _memory(pair.ours, pair.part, inputs),
                "einsum": _memory(pair.einsum, pair.part, inputs),
                "dense": of_dense,
            }.items():
                row |= {f"saved_mb_{side}": saved / 1e6, f"peak_mb_{side}": peak / 1e6}
            yield row


def _memory(module: nn.Module, part: str, inputs: Inputs) -> tuple[int, int]:
    module.train()
    x_BTD = inputs.x_BTD.clone().requires_grad_()
    routed = part in ("horizontal", "vertical")
    gates = [gate.clone().requires_grad_() for gate in inputs.gates] if routed else []
    known = [x_BTD, *gates, *module.parameters(), *module.buffers()]
    saved = saved_bytes(lambda: module(x_BTD, *gates), known)
    run = runner(module, part, BOTH, inputs)
    run()  # gradients exist from here on, as they do in a training run
    return saved, peak_bytes(run)


class Group(nn.Module):
    """A router and the layers it serves, each added to the residual stream."""

    def __init__(self, router: nn.Module, layers: list[nn.Module]) -> None:
        super().__init__()
        self.router, self.layers = router, nn.ModuleList(layers)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gates = self.router(x_BTD)[:2]
        for layer in self.layers:
            x_BTD = x_BTD + layer(x_BTD, *gates)
        return x_BTD


def step_memory_rows(plan: Plan) -> Iterator[dict[str, Any]]:
    """Peak megabytes of a training step of a routing group, beyond its weights and their gradients."""
    parts: dict[str, dict[str, tuple[Any, Any]]] = {
        "horizontal": {"ours": (MonetRouter, HorizontalExperts), "einsum": (EinsumRouter, EinsumHorizontal)},
        "vertical": {"ours": (MonetRouter, VerticalExperts), "einsum": (EinsumRouter, EinsumVertical)},
    }
    for decompose, sides in parts.items():
        config = plan.config(plan.topks[0], decompose)
        row: dict[str, Any] = {"group": decompose, "layers": plan.group_layers, "tokens": plan.step_tokens}
        for side, (router, experts) in sides.items():
            group = Group(router(config), [experts(config) for _ in range(plan.group_layers)])
            for parameter in group.parameters():
                nn.init.normal_(parameter, std=0.02)
                parameter.grad = torch.zeros_like(parameter)
            x_BTD = torch.randn(1, plan.step_tokens, plan.hidden_size)
            row[f"step_peak_mb_{side}"] = peak_bytes(partial(_step, group, x_BTD)) / 1e6
        yield row | {"ratio": row["step_peak_mb_ours"] / row["step_peak_mb_einsum"]}


def _step(group: Group, x_BTD: Tensor) -> None:
    out_BTD = group(x_BTD)
    out_BTD.backward(out_BTD.detach())


def shape_fields(plan: Plan, pair: Pair, tokens: int) -> dict[str, Any]:
    """Fields that identify a row."""
    return {
        "part": pair.part, "topk": pair.topk, "tokens": tokens, "hidden_size": plan.hidden_size,
        "experts": plan.experts, "heads": plan.heads, "expert_width": plan.expert_width,
        "dense_width": plan.dense_width, "dtype": "float32",
    }  # fmt: skip


def environment(plan: Plan) -> dict[str, Any]:
    """Machine, versions and settings, on which the numbers depend."""
    return {
        "cpu": processor(), "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0], "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "rounds": plan.rounds, "block_seconds": plan.block_seconds,
    }  # fmt: skip


def processor() -> str:
    """Name of the CPU's model."""
    names = (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(names, "unknown")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def print_rows(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """A table; `columns` gives each shown field its format."""
    widths = [max(len(name), *(len(format(row[name], form)) for row in rows)) for name, form in columns.items()]
    print("  ".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    for row in rows:
        cells = [format(row[name], form) for name, form in columns.items()]
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    print(flush=True)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print both tables, and write them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows, the memory and the environment")
    parser.add_argument("--quick", action="store_true", help="use a toy shape, to check that the benchmark runs")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = QUICK if options.quick else Plan()
    result: dict[str, Any] = {"environment": environment(plan)}
    print("  ".join(f"{key}={value}" for key, value in result["environment"].items()), end="\n\n")
    pairs, dense = build(plan)
    figures = (
        "ms_ours",
        "ms_einsum",
        "ms_dense",
        "speedup_over_einsum",
        "speedup_low",
        "speedup_high",
        "ratio_to_dense",
    )
    result["rows"] = []
    for rows in time_rows(plan, pairs, dense):
        print_rows(rows, {"part": "", "topk": "", "tokens": "", "mode": "", **dict.fromkeys(figures, ".2f")})
        result["rows"] += rows
    result["memory"] = list(memory_rows(plan, pairs, dense))
    megabytes = {f"{what}_mb_{side}": ".1f" for what in ("saved", "peak") for side in ("ours", "einsum", "dense")}
    print_rows(result["memory"], {"part": "", "tokens": "", **megabytes})
    result["step_memory"] = list(step_memory_rows(plan))
    peaks = {"step_peak_mb_ours": ".1f", "step_peak_mb_einsum": ".1f", "ratio": ".2f"}
    print_rows(result["step_memory"], {"group": "", "layers": "", "tokens": "", **peaks})
    if options.json:
        atomic_write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
