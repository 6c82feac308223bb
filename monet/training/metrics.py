"""What a run records: metrics.jsonl and validation.jsonl, throughput, and the health of the routers."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from monet.files import atomic_write_text, fsync_path

if TYPE_CHECKING:
    from monet.training.module import MonetLightningModule

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"


class RouterHealth:
    """Which routing keys are alive: remembers at which step each (group, side, head, key) cell last fired.

    A cell is dead if no token reached it in the last `window_steps` optimiser steps (in fewer at the run's start).
    A dead key gets no gradient, so it does not come back by itself.
    """

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self.last_fired_R2HE: Tensor | None = None

    def update(self, fired_2HE: Sequence[Tensor], step: int) -> None:
        """Note the keys that fired.

        Args:
            fired_2HE: for each routing group, the number of tokens at which each key fired; int64.
            step: the optimiser step these tokens belong to, 1-based.
        """
        fired_R2HE = torch.stack(tuple(fired_2HE)) > 0
        if self.last_fired_R2HE is None:
            self.last_fired_R2HE = torch.zeros_like(fired_R2HE, dtype=torch.int64)
        self.last_fired_R2HE = self.last_fired_R2HE.to(fired_R2HE.device).masked_fill(fired_R2HE, step)

    def dead_share(self, step: int) -> Tensor:
        """Share of dead cells after `step`, in [0, 1]; a float64 scalar, NaN before the first update."""
        if self.last_fired_R2HE is None:
            return torch.tensor(float("nan"), dtype=torch.float64)
        dead = step - self.last_fired_R2HE >= min(self.window_steps, step)
        return dead.double().mean()

    def state_dict(self) -> dict[str, Any]:
        return {"last_fired_R2HE": self.last_fired_R2HE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_fired_R2HE = state["last_fired_R2HE"]


def truncate_log(path: Path, step: int) -> None:
    """Drop what was logged after `step` (a run that continues writes it again) and a half-written last line."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and entry.get("step", step + 1) <= step:
            kept.append(line + "\n")
    atomic_write_text(path, "".join(kept))


class MetricsLog(Callback):
    """Writes run_dir/metrics.jsonl, one line per optimiser step, and hands the same numbers to Lightning's loggers.

    Every line is handed to the system when written, and on the disk before a checkpoint that covers it.
    Only the process of rank 0 writes.

    Args:
        run_dir: the run's folder.
        throughput_steps: tokens per second is a mean over this many steps.
    """

    def __init__(self, run_dir: Path, throughput_steps: int = 20) -> None:
        self.run_dir = run_dir
        self.finished: deque[tuple[float, int]] = deque(maxlen=throughput_steps + 1)
        self.logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged_step = trainer.global_step
        self.finished.clear()
        self.finished.append((time.monotonic(), _module(pl_module).tokens_seen))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.logged_step:  # still accumulating gradients
            return
        self.logged_step = trainer.global_step
        module = _module(pl_module)
        self.finished.append((time.monotonic(), module.tokens_seen))
        (start, tokens_before), (end, tokens) = self.finished[0], self.finished[-1]
        metrics = module.take_step_metrics()
        metrics["tokens_per_second"] = (tokens - tokens_before) / max(end - start, 1e-9)
        tokens_per_step = tokens - self.finished[-2][1]
        module.log_dict({f"train/{name}": value for name, value in metrics.items()})
        if trainer.is_global_zero:
            self._write(METRICS, {"step": trainer.global_step, **metrics, "tokens": module.tokens_seen})
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                print(_progress(trainer.global_step, trainer.max_steps, metrics, tokens_per_step), flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _module(pl_module)
        if trainer.is_global_zero and module.validation_result is not None and not trainer.sanity_checking:
            self._write(VALIDATION, {"step": trainer.global_step, **module.validation_result})
            print(_validation_line(trainer.global_step, module.validation_result), flush=True)
        if self.finished:  # time spent in validation is not training time
            self.finished.clear()
            self.finished.append((time.monotonic(), module.tokens_seen))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for name in (METRICS, VALIDATION):
            if (self.run_dir / name).is_file():
                fsync_path(self.run_dir / name)

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        with open(self.run_dir / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")


def _progress(step: int, max_steps: int, metrics: dict[str, float], tokens_per_step: int) -> str:
    seconds_left = (max_steps - step) * tokens_per_step / metrics["tokens_per_second"]
    left = timedelta(seconds=round(seconds_left))
    return (
        f"step {step}/{max_steps}  loss {metrics['loss']:.4f}  dead {metrics['dead_share']:.1%}"
        f"  gradient {metrics['grad_norm']:.2f}  rate {metrics['learning_rate']:.2e}"
        f"  {metrics['tokens_per_second']:,.0f} tokens/s  {left} left"
    )


def _validation_line(step: int, result: dict[str, Any]) -> str:
    domains = "  ".join(f"{name} {value:.1f}" for name, value in result["perplexity_by_domain"].items())
    return f"step {step}  validation perplexity {result['perplexity']:.2f}  ({domains})"


def _module(module: LightningModule) -> MonetLightningModule:
    from monet.training.module import MonetLightningModule

    assert isinstance(module, MonetLightningModule)
    return module
