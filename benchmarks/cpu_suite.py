"""Measures one Monet layer on the CPU and compares the figures with their targets.

    python -m benchmarks.cpu_suite [--json FILE] [--onednn] [--quick]

A layer consists of its experts and a quarter of a router, because one router serves four layers. It is timed in turns
with the einsum formulation and with Llama's MLP of the same model family (SwiGLU, width 5504). A value is the
median of the ratios of each round, and `low` and `high` are quartiles. Before timing, the command checks that both
formulations agree. On a busy machine threads wait for each other, which slows down a layer's short operators most:
`--threads 1` is then the fairer comparison. Decoding uses different tokens in turn, so that weights come from memory
as in a model of many layers. The exit code does not depend on the figures.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import cpu_layer
from benchmarks.baseline import EinsumRouter
from benchmarks.cpu_layer import BOTH, FORWARD, Inputs, Pair, runner
from benchmarks.measure import saved_bytes, time_in_turns
from monet.cpu import use_onednn_products
from monet.files import atomic_write_json
from monet.kernels.decode.build import has_cpp
from monet.kernels.masked import Keep
from monet.model.router import MonetRouter

SHORT = {"horizontal": "hd", "vertical": "vd"}
AT_MOST, AT_LEAST = "at most", "at least"
Run = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """Settings of the measurement, and its duration. `listed` are the shapes of C7: tokens and mode."""

    layer: cpu_layer.Plan = field(default_factory=lambda: cpu_layer.Plan(dense_width=5504))
    prefill_tokens: int = 256
    decode_tokens: int = 16
    listed: tuple[tuple[int, str], ...] = (
        (1, FORWARD), (16, FORWARD), (128, FORWARD), (512, FORWARD), (16, BOTH), (128, BOTH), (256, BOTH),
    )  # fmt: skip
    rounds: int = 7
    # After this many seconds three rounds are enough, so the suite takes less than five minutes on a busy machine too.
    thorough_seconds: float = 100
    block_seconds: float = 0.15


QUICK = Plan(cpu_layer.QUICK, 24, 3, ((1, FORWARD), (9, BOTH)), rounds=3, block_seconds=0.001)


@contextmanager
def decoding(choice: str) -> Iterator[None]:
    """Sets MONET_DECODE."""
    before = os.environ.get("MONET_DECODE")
    os.environ["MONET_DECODE"] = choice
    try:
        yield
    finally:
        del os.environ["MONET_DECODE"]
        if before is not None:
            os.environ["MONET_DECODE"] = before


class Parts:
    """The modules of both formulations, and inputs with separate routing for each k."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._started = plan, time.monotonic()
        self.pairs, self.dense = cpu_layer.build(plan.layer)
        self._inputs: dict[tuple[int, int], Inputs] = {}

    def time(self, runs: dict[str, Run]) -> dict[str, list[float]]:
        """Milliseconds of each run, one number a round."""
        late = time.monotonic() - self._started > self.plan.thorough_seconds
        return time_in_turns(runs, min(3, self.plan.rounds) if late else self.plan.rounds, self.plan.block_seconds)

    def pair(self, part: str, topk: int) -> Pair:
        return next(pair for pair in self.pairs if (pair.part, pair.topk) == (part, topk))

    def inputs(self, tokens: int, topk: int) -> Inputs:
        if (tokens, topk) not in self._inputs:
            router = self.pair("router", topk).einsum
            assert isinstance(router, EinsumRouter)
            self._inputs[tokens, topk] = cpu_layer.make_inputs(self.plan.layer, tokens, router)
        return self._inputs[tokens, topk]


def single_tokens(inputs: Inputs) -> list[Inputs]:
    """The tokens of a batch, one by one."""
    every = range(inputs.x_BTD.shape[1])
    return [
        Inputs(*(_each(part, slice(t, t + 1)) for part in inputs))  # type: ignore[arg-type]
        for t in every
    ]


def _each(part: Tensor | tuple[Tensor, ...], rows: slice) -> Any:
    return part[:, rows] if isinstance(part, Tensor) else tuple(tensor[:, rows] for tensor in part)


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module, or a copy in another dtype; running statistics stay float32."""
    if dtype == torch.float32:
        return module
    module = copy.deepcopy(module).to(dtype)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.float()
    return module


def in_turn(runs: list[Run]) -> Run:
    """One call that runs the next of `runs` each time."""
    following = cycle(runs)
    return lambda: next(following)()


class Row(dict[str, Any]):
    """A line of the table: `value` is the median of `samples` and must be at most or at least `must`."""

    def __init__(self, name: str, what: str, samples: list[float], bound: str, must: float, **more: Any) -> None:
        value = statistics.median(samples)
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [value] * 3
        super().__init__(
            id=name, what=what, value=value, low=low, high=high, unit=more.pop("unit", "ratio"), bound=bound, must=must,
            meets_must=value <= must if bound == AT_MOST else value >= must, **more,
        )  # fmt: skip


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _layer(samples: dict[str, list[float]], experts: str, router: str) -> list[float]:
    return [e + r / 4 for e, r in zip(samples[experts], samples[router], strict=True)]


def _ms(**samples: list[float]) -> dict[str, float]:
    return {f"ms_{name}": statistics.median(values) for name, values in samples.items()}


def prefill_rows(parts: Parts) -> Iterator[Row]:
    """C1, C2: time of a layer's forward divided by that of the dense MLP."""
    plan, tokens = parts.plan, parts.plan.prefill_tokens
    for topk in plan.layer.topks:
        inputs = parts.inputs(tokens, topk)
        runs: dict[str, Run] = {"dense": runner(parts.dense, "dense", FORWARD, inputs)}
        for part in ("router", "horizontal", "vertical"):
            pair = parts.pair(part, topk)
            cpu_layer.check_agreement(pair, FORWARD, inputs)
            runs[part] = runner(pair.ours, part, FORWARD, inputs)
        samples = parts.time(runs)
        for name, part, must in (("C1", "horizontal", 1.10), ("C2", "vertical", 1.20)):
            ours = _layer(samples, part, "router")
            what = f"{part} prefill T={tokens} k={topk}, layer over dense"
            name = name if topk == plan.layer.topks[0] else f"{name}-k{topk}"
            ratios = _ratios(ours, samples["dense"])
            yield Row(name, what, ratios, AT_MOST, must, **_ms(ours=ours, dense=samples["dense"]))


def decode_rows(parts: Parts) -> Iterator[Row]:
    """C3, C4: a layer for one token, compared with the dense MLP, the einsum layer and its own dense path."""
    plan = parts.plan
    few, many = plan.layer.topks
    for dtype in (torch.float32, torch.bfloat16):
        for topk in (few, many):
            yield from _decode(parts, topk, dtype, few)


def _decode(parts: Parts, topk: int, dtype: torch.dtype, few: int) -> Iterator[Row]:
    plan = parts.plan
    inputs = [
        Inputs(one.x_BTD.to(dtype), *one[1:]) for one in single_tokens(parts.inputs(plan.decode_tokens, topk))
    ]  # fmt: skip
    runs: dict[str, Run] = {}

    def enter(name: str, module: nn.Module, part: str, choice: str = "auto") -> None:
        module = in_dtype(module, dtype)
        calls: list[Run] = [runner(module, part, FORWARD, one) for one in inputs]
        run = in_turn(calls)

        def chosen() -> None:
            with decoding(choice):
                run()

        runs[name] = chosen

    pairs = {part: parts.pair(part, topk) for part in ("router", "horizontal", "vertical")}
    enter("dense", parts.dense, "dense")
    for part, pair in pairs.items():
        if dtype == torch.float32:
            cpu_layer.check_agreement(pair, FORWARD, inputs[0])
        enter(f"{part} ours", pair.ours, part)
        enter(f"{part} einsum", pair.einsum, part)
        if part != "router":
            enter(f"{part} own dense", pair.ours, part, "dense")
    samples = parts.time(runs)
    for part, short in SHORT.items():
        ours, einsum, own = (_layer(samples, f"{part} {side}", f"router {router}") for side, router in (
            ("ours", "ours"), ("einsum", "einsum"), ("own dense", "ours")))  # fmt: skip
        variant = ("" if short == "hd" else f"-{short}") + ("" if dtype == torch.float32 else "-bf16")
        where = f"{part} decode T=1 k={topk} {str(dtype)[6:]}"
        milliseconds = _ms(ours=ours, dense=samples["dense"], einsum=einsum, own_dense=own)
        if topk == few:
            yield Row(f"C3{variant}", f"{where}, layer over dense", _ratios(ours, samples["dense"]), AT_MOST,
                      0.60, **milliseconds)  # fmt: skip
            yield Row(f"C3{variant}-speedup", f"{where}, einsum layer over ours", _ratios(einsum, ours),
                      AT_LEAST, 2.5)  # fmt: skip
        else:
            yield Row(f"C4{variant}", f"{where}, layer over its own dense path", _ratios(ours, own), AT_MOST,
                      1.00, **milliseconds)  # fmt: skip


class _Recorded(nn.Linear):
    """Returns a copy of recorded logits, so that it costs only the copy."""

    def __init__(self, linear: nn.Linear, x_BTD: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        with torch.no_grad():
            self.z_TP = linear(x_BTD.flatten(0, 1))

    def forward(self, input: Tensor) -> Tensor:
        return self.z_TP.clone()


def _products(router: MonetRouter, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    return router.w1(x_TD), router.w2(x_TD)


def router_rows(parts: Parts) -> Iterator[Row]:
    """C5: time that a router spends on its logits, divided by that of the matrix products that compute them."""
    plan, topk = parts.plan, parts.plan.layer.topks[0]
    for tokens in (plan.prefill_tokens, 1):
        inputs = parts.inputs(tokens, topk)
        ours = parts.pair("router", topk).ours
        assert isinstance(ours, MonetRouter)
        bare = MonetRouter(plan.layer.config(topk, "horizontal"))
        bare.load_state_dict(ours.state_dict(), assign=True)
        bare.w1, bare.w2 = _Recorded(ours.w1, inputs.x_BTD), _Recorded(ours.w2, inputs.x_BTD)
        runs: dict[str, Run] = {
            "gemm": partial(_products, ours, inputs.x_BTD[0]),
            "rest": runner(bare, "router", FORWARD, inputs),
            "rest in training": lambda bare=bare, inputs=inputs: bare.train()(inputs.x_BTD),
        }
        with torch.no_grad():
            samples = parts.time(runs)
        for name, kind in ((f"C5-{tokens}", "rest"), (f"C5-{tokens}-training", "rest in training")):
            what = f"router T={tokens} k={topk}, {'' if kind == 'rest' else 'with batch statistics, '}rest over GEMM"
            yield Row(name, what, _ratios(samples[kind], samples["gemm"]), AT_MOST, 0.25,
                      **_ms(ours=samples[kind], gemm=samples["gemm"]))  # fmt: skip


def masked_rows(parts: Parts) -> Iterator[Row]:
    """C6: time of a layer under a hard mask, divided by that without a mask."""
    plan, E = parts.plan, parts.plan.layer.experts
    keep = Keep(torch.rand(1, E, E, generator=torch.Generator().manual_seed(0)) > 0.5)
    topk = plan.layer.topks[0]
    for tokens in (plan.prefill_tokens, 1):
        inputs = parts.inputs(tokens, topk)
        runs: dict[str, Run] = {}
        for part in SHORT:
            module: Any = parts.pair(part, topk).ours
            runs[part] = runner(module, part, FORWARD, inputs)
            runs[f"{part} masked"] = _without_gradients(lambda m=module, i=inputs: m(i.x_BTD, *i.gates, keep))
        runs["router"] = runner(parts.pair("router", topk).ours, "router", FORWARD, inputs)
        samples = parts.time(runs)
        for part, short in SHORT.items():
            plain, masked = (_layer(samples, f"{part}{kind}", "router") for kind in ("", " masked"))
            what = f"{part} T={tokens} k={topk}, half of the experts masked, over unmasked"
            yield Row(f"C6-{short}-{tokens}", what, _ratios(masked, plain), AT_MOST, 1.25,
                      **_ms(ours=masked, unmasked=plain))  # fmt: skip


def _without_gradients(run: Run) -> Run:
    def quietly() -> None:
        with torch.no_grad():
            run()

    return quietly


def einsum_rows(parts: Parts) -> Iterator[Row]:
    """C7: a layer against the einsum formulation on every listed shape."""
    plan = parts.plan
    for tokens, mode in plan.listed:
        runs: dict[str, Run] = {}
        for pair in parts.pairs:
            inputs = parts.inputs(tokens, pair.topk)
            cpu_layer.check_agreement(pair, mode, inputs)
            for side, module in (("ours", pair.ours), ("einsum", pair.einsum)):
                runs[f"{pair.part} {pair.topk} {side}"] = runner(module, pair.part, mode, inputs)
        samples = parts.time(runs)
        for topk in plan.layer.topks:
            for part, short in SHORT.items():
                ours, einsum = (
                    _layer(samples, f"{part} {topk} {side}", f"router {topk} {side}") for side in ("ours", "einsum")
                )
                name = f"C7-{short}-{tokens}-k{topk}" + ("-training" if mode == BOTH else "")
                what = f"{part} {mode} T={tokens} k={topk}, einsum layer over ours"
                yield Row(name, what, _ratios(einsum, ours), AT_LEAST, 1.0, **_ms(ours=ours, einsum=einsum))


def memory_rows(parts: Parts) -> Iterator[Row]:
    """C8: memory that a layer keeps for its backward, and the peak of a training step of a routing group."""
    plan = parts.plan
    tokens, topk = plan.layer.memory_tokens, plan.layer.topks[0]
    inputs = parts.inputs(tokens, topk)
    for dtype, suffix in ((torch.bfloat16, ""), (torch.float32, "-fp32")):
        router = _kept_kib(parts.pair("router", topk).ours, "router", inputs, dtype)
        for part, short in SHORT.items():
            pair = parts.pair(part, topk)
            ours, einsum = (_kept_kib(module, part, inputs, dtype) for module in (pair.ours, pair.einsum))
            what = f"{part} T={tokens} {str(dtype)[6:]}, kept for backward a token and layer, input counted, router not"
            yield Row(f"C8-{short}{suffix}", what, [ours], AT_MOST, 40, unit="KiB",
                      kib_einsum=einsum, kib_with_quarter_router=ours + router / 4)  # fmt: skip
    for row in cpu_layer.step_memory_rows(plan.layer):
        group = f"{row['layers']} {row['group']} layers and their router, T={row['tokens']}"
        what = f"peak memory of a training step of {group}, ours over einsums"
        yield Row(f"C8-step-{SHORT[row['group']]}", what, [row["ratio"]], AT_MOST, 0.5,
                  mb_ours=row["step_peak_mb_ours"], mb_einsum=row["step_peak_mb_einsum"])  # fmt: skip


def _kept_kib(module: nn.Module, part: str, inputs: Inputs, dtype: torch.dtype) -> float:
    """KiB for each token that the module keeps for its backward; the router's memory includes its probabilities."""
    module = in_dtype(module, dtype).train()
    x_BTD = inputs.x_BTD.to(dtype).requires_grad_()
    gates = [gate.clone().requires_grad_() for gate in inputs.gates] if part in SHORT else []
    known = [*gates, *module.parameters(), *module.buffers()] + ([] if part in SHORT else [x_BTD])
    saved = saved_bytes(lambda: module(x_BTD, *gates), known)
    return saved / x_BTD.shape[1] / 1024


SECTIONS = (prefill_rows, decode_rows, router_rows, masked_rows, einsum_rows, memory_rows)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table as it grows, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the rows and the environment")
    parser.add_argument("--quick", action="store_true", help="use a toy shape, to check that the suite runs")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's own choice")
    parser.add_argument(
        "--onednn", action="store_true", help="all products by oneDNN, as train.py has them (monet/cpu.py)"
    )
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.onednn and not use_onednn_products():
        parser.error("--onednn: oneDNN is missing, not exact or not useful on this processor; omit the option")
    started = time.monotonic()
    plan = QUICK if options.quick else Plan()
    environment = cpu_layer.environment(plan.layer) | {
        "rounds": plan.rounds, "block_seconds": plan.block_seconds, "cpp": has_cpp(),
        "onednn": options.onednn, "shape": f"{plan.layer}",
    }  # fmt: skip
    print("  ".join(f"{key}={value}" for key, value in environment.items() if key != "shape"), end="\n\n")
    parts, rows = Parts(plan), []
    for section in SECTIONS:
        for row in section(parts):
            rows.append(row)
            verdict = "meets" if row["meets_must"] else "MISSES"
            print(f"{row['id']:<22} {row['value']:8.3f} [{row['low']:.3f} .. {row['high']:.3f}] {row['unit']:<5} "
                  f"{verdict} {row['bound']} {row['must']:<5} {row['what']}", flush=True)  # fmt: skip
    if options.quick:
        print("\nThis is a toy shape: the figures say nothing about the targets.")
    environment |= {"load_average_after": os.getloadavg()[0], "seconds": time.monotonic() - started}
    missed = [row["id"] for row in rows if not row["meets_must"]]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} rows meet their must; load average "
          f"{environment['load_average']:.1f} before, {environment['load_average_after']:.1f} after; "
          f"{environment['seconds']:.0f} s. Missed: {', '.join(missed) or 'none'}")  # fmt: skip
    result = {"environment": environment, "rows": rows}
    if options.json:
        atomic_write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
