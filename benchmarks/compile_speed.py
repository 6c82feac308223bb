"""Compares a training step under torch.compile with the eager one: `python -m benchmarks.compile_speed`.

    python -m benchmarks.compile_speed [--config configs/demo.yaml] [--rounds 20] [--threads N]

Both run forward and backward of the configuration's micro-batch, in turns on the same random windows and weights. The
compiled model is that of `compile: true`. The first call compiles; its seconds are shown separately.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import time_on_device
from monet.cpu import speed_up_cpu
from monet.training.configs import read_training_config
from monet.training.module import MonetLightningModule
from monet.training.settings import ModelShape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    settings = read_training_config([arguments.config])
    torch.set_num_threads(arguments.threads or settings.cpu_threads or torch.get_num_threads())
    speed_up_cpu()
    torch.manual_seed(0)
    shape = ModelShape(**settings.model.shape.as_dict())
    module = MonetLightningModule(shape, attention=settings.model.attention)
    windows = torch.randint(shape.vocab_size, (settings.data.batch_size, settings.data.seq_len + 1))
    models = {"eager": module.model.train(), "compiled": copy.deepcopy(module.model).train()}
    models["compiled"].compile()
    losses, first_seconds = {}, {}

    def step(name: str) -> Callable[[], object]:
        model = models[name]

        def run() -> float:
            out = model(
                input_ids=windows[:, :-1],
                shift_labels=windows[:, 1:],
                router_loss=module.router_loss,
                use_cache=False,
                return_logits=False,
            )
            out.loss.backward()
            model.zero_grad()
            return out.loss.item()

        return run

    runs = {name: step(name) for name in models}
    for name, run in runs.items():
        started = time.perf_counter()
        losses[name] = run()
        first_seconds[name] = time.perf_counter() - started
    samples = time_on_device(runs, torch.device("cpu"), arguments.rounds)
    for name, values in samples.items():
        print(
            f"{name:9}  loss {losses[name]:.6f}  first call {first_seconds[name]:.1f} s"
            f"  median {statistics.median(values):.1f} ms a micro-batch"
        )


if __name__ == "__main__":
    main()
