"""Compares the speed of the demo's training with the same model in the einsum formulation in a plain loop.

    python -m benchmarks.train_speed [--rounds 3] [--steps 50] [--json FILE]

Each round runs both in separate processes. One is `train.py fit` as a user runs it, including logging and checks. The
other is a loop of forward, backward, clipping and AdamW over the modules of `benchmarks/baseline.py` with torch's
defaults. The figure is the median over a process' steps after the first three, in tokens per second; `ratio` is ours
over the loop's in each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks.baseline import EinsumHorizontal, EinsumRouter, EinsumVertical
from benchmarks.cpu_layer import Plan, environment
from monet import MonetConfig, MonetForCausalLM
from monet.files import atomic_write_json
from monet.model.router import RouterOutput

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3


class LossRouter(nn.Module):
    """The einsum router with the paper's auxiliary losses, as a replacement for ours."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.inner = EinsumRouter(config)
        self.loss = torch.zeros(())

    def forward(self, x_BTD: Tensor, **_: Any) -> RouterOutput:
        g1_BTHE, g2_BTHE = self.inner(x_BTD)
        uniformity = sum(-g.mean((0, 1)).clamp(min=1e-9).log().mean() for g in (g1_BTHE, g2_BTHE)) / 2
        ambiguity = sum((1 - g.amax(-1)).mean() for g in (g1_BTHE, g2_BTHE)) / 2
        self.loss = uniformity + ambiguity
        return RouterOutput(g1_BTHE, g2_BTHE, (g1_BTHE, g2_BTHE))

    def update_statistics(self, _: RouterOutput) -> None:
        """BatchNorm has already updated them."""


class EinsumExperts(nn.Module):
    """The einsum experts, as a replacement for ours."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.inner = {"horizontal": EinsumHorizontal, "vertical": EinsumVertical}[config.moe_decompose](config)

    def forward(self, x_BTD: Tensor, g1_BTHE: Tensor, g2_BTHE: Tensor, keep: None = None) -> Tensor:
        return self.inner(x_BTD, g1_BTHE, g2_BTHE)


def einsum_model(config: MonetConfig) -> tuple[MonetForCausalLM, list[LossRouter]]:
    """Our model with routers and experts replaced."""
    model = MonetForCausalLM(config)
    routers = []
    for layer in model.model.layers:
        experts = EinsumExperts(config)
        experts.inner.load_state_dict(layer.moe.state_dict())  # pyright: ignore[reportAttributeAccessIssue]
        layer.moe = experts
        if layer.router is not None:
            routers.append(LossRouter(config))
            state = layer.router.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
            routers[-1].inner.load_state_dict(state)
            layer.router = routers[-1]
    return model.train(), routers


def plain_loop(config_file: Path, steps: int) -> None:
    """Train the einsum model and print its tokens per second."""
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    if config.get("cpu_threads"):
        torch.set_num_threads(config["cpu_threads"])
    torch.manual_seed(0)
    model, routers = einsum_model(MonetConfig(**config["model"]["shape"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    B, T = config["data"]["batch_size"], config["data"]["seq_len"]
    seconds = []
    for _ in range(steps):
        windows = torch.randint(0, model.config.vocab_size, (B, T + 1))
        started = time.perf_counter()
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        loss = loss + 1e-3 * sum(router.loss for router in routers) / len(routers)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    print(B * T / statistics.median(seconds[WARM_UP:]))


def measure_loop(config_file: Path, steps: int) -> float:
    """Tokens per second of the plain loop in a separate process."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.train_speed",
        "--config",
        str(config_file),
        "--steps",
        str(steps),
        "--loop",
    ]
    return float(subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def measure_trainer(config_file: Path, steps: int) -> float:
    """Tokens per second of train.py, from the times between the lines of its log."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "train.py", "fit", "--config", str(config_file), "--run_dir", folder,
                 "--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(10 * steps),
                 "--model.schedule.warmup_steps", "1"]  # fmt: skip
        subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(line["tokens_per_second"] for line in lines[WARM_UP:])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure in turns, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/demo.yaml", help="the run; default: the demo's")
    parser.add_argument("--rounds", type=int, default=3, help="turns of both; default: %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="optimiser steps of each turn; default: %(default)s")
    parser.add_argument("--json", type=Path, help="file for the rows and the environment")
    parser.add_argument("--loop", action="store_true", help="run the plain loop in this process and print its figure")
    options = parser.parse_args(argv)
    if options.steps <= WARM_UP:
        parser.error(f"--steps {options.steps}: use more than {WARM_UP}, which are warm-up")
    if options.loop:
        plain_loop(options.config, options.steps)
        return {}
    result: dict[str, Any] = {"environment": environment(Plan()), "config": options.config.name, "rows": []}
    print("  ".join(f"{key}={value}" for key, value in result["environment"].items()), end="\n\n")
    print("round  einsum loop  train.py  ratio   (tokens a second)")
    for number in range(1, options.rounds + 1):
        loop, trainer = measure_loop(options.config, options.steps), measure_trainer(options.config, options.steps)
        result["rows"].append({"loop": loop, "trainer": trainer, "ratio": trainer / loop})
        print(f"{number:5d}  {loop:11.0f}  {trainer:8.0f}  {trainer / loop:5.2f}", flush=True)
    result["ratio"] = statistics.median(row["ratio"] for row in result["rows"])
    print(f"median ratio {result['ratio']:.2f}")
    if options.json:
        atomic_write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
