"""Profiles the operators of a routing group on the CPU, in the einsum formulation and in ours.

    python -m benchmarks.cpu_profile [--json FILE] [--decompose vertical] [--topk 32] [--quick]

A group is one router and the four layers it serves, at the 1.4B shape in float32. Two steps are profiled for both
formulations on the same weights: decoding, one token at a time, and training, forward and backward of 128 tokens. The
figure is an operator's self time in milliseconds for each step; operators below 1 % of both totals are summed. The
profiler slows down short operators, so the totals are measured without it, in turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.baseline import EinsumHorizontal, EinsumRouter, EinsumVertical
from benchmarks.cpu_layer import QUICK, Group, Plan, environment, make_inputs, print_rows
from benchmarks.measure import time_in_turns
from monet.files import atomic_write_json
from monet.model.experts import EXPERTS
from monet.model.router import MonetRouter

TOKENS = {"decode": 1, "training": 128}
PROFILED_STEPS = {"decode": 40, "training": 4}
SMALLEST_SHARE = 0.01
EINSUM = {"horizontal": EinsumHorizontal, "vertical": EinsumVertical}


def groups(plan: Plan, topk: int, decompose: str) -> dict[str, Group]:
    """Both formulations on the same weights, the einsums first."""
    torch.manual_seed(0)
    config = plan.config(topk, decompose)
    ours = Group(MonetRouter(config), [EXPERTS[decompose](config) for _ in range(plan.group_layers)])
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    einsum = Group(EinsumRouter(config), [EINSUM[decompose](config) for _ in range(plan.group_layers)])
    assert isinstance(einsum.router, EinsumRouter)
    make_inputs(plan, 256, einsum.router)  # sets its running statistics, so that about k keys act
    einsum.load_state_dict(ours.state_dict() | {n: b for n, b in einsum.state_dict().items() if "running" in n})
    ours.load_state_dict(einsum.state_dict())
    return {"einsum": einsum, "ours": ours}


def step_of(kind: str, group: Group, x_BTD: Tensor) -> Callable[[], object]:
    """One decoding or training step."""
    if kind == "decode":
        group.eval()

        def decode() -> None:
            with torch.inference_mode():
                group(x_BTD)

        return decode
    group.train()

    def train() -> None:
        out_BTD = group(x_BTD)
        out_BTD.backward(torch.ones_like(out_BTD))

    return train


def own_milliseconds(step: Callable[[], object], repeats: int) -> Counter[str]:
    """Self time of each operator in a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            step()
    return Counter({event.key: event.self_cpu_time_total / 1e3 / repeats for event in profiler.key_averages()})


def table(times: dict[str, Counter[str]]) -> list[dict[str, Any]]:
    """Operators by the time they take in either formulation, the small ones summed."""
    totals = {side: sum(counter.values()) for side, counter in times.items()}
    names = {
        name for side, counter in times.items() for name, ms in counter.items() if ms >= SMALLEST_SHARE * totals[side]
    }
    rows = [
        {"operator": name[-60:], **{f"ms_{side}": counter[name] for side, counter in times.items()}} for name in names
    ]
    rows.sort(key=lambda row: -row["ms_einsum"] - row["ms_ours"])
    rest = {
        f"ms_{side}": sum(ms for name, ms in counter.items() if name not in names) for side, counter in times.items()
    }
    return [*rows, {"operator": "all others", **rest}]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Profile both steps, print their tables, and write them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the tables and the environment")
    parser.add_argument("--decompose", choices=sorted(EINSUM), default="horizontal", help="default: %(default)s")
    parser.add_argument("--topk", type=int, default=8, help="keys that act a side and head; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="use a toy shape, to check that the command runs")
    options = parser.parse_args(argv)
    plan = QUICK if options.quick else Plan()
    if not 1 <= options.topk <= plan.experts:
        parser.error(f"--topk {options.topk}: use 1 to {plan.experts}, the number of keys")
    result: dict[str, Any] = {"environment": environment(plan), "steps": {}}
    print("  ".join(f"{key}={value}" for key, value in result["environment"].items()), end="\n\n")
    sides = groups(plan, options.topk, options.decompose)
    for kind, tokens in TOKENS.items():
        x_BTD = torch.randn(1, tokens, plan.hidden_size)
        steps = {side: step_of(kind, group, x_BTD) for side, group in sides.items()}
        repeats = 1 if options.quick else PROFILED_STEPS[kind]
        clocks = time_in_turns(steps, plan.rounds, plan.block_seconds)
        times = {side: own_milliseconds(step, repeats) for side, step in steps.items()}
        clock = {f"ms_{side}": statistics.median(samples) for side, samples in clocks.items()}
        print(f"{kind}: {options.decompose}, k={options.topk}, {tokens} tokens, {plan.group_layers} layers")
        rows = [*table(times), {"operator": "step by the clock, unprofiled", **clock}]
        print_rows(rows, {"operator": "", "ms_einsum": ".2f", "ms_ours": ".2f"})
        result["steps"][kind] = rows
    if options.json:
        atomic_write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
