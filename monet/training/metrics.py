"""Records of a run: metrics.jsonl, validation.jsonl and spikes.jsonl, speed, and the health of the routers."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from monet.costs.flops import training_flops_per_token
from monet.costs.hardware import peak_flops
from monet.errors import DataError, MonetError
from monet.files import fsync_path
from monet.json_text import parse_json
from monet.training.watch.clock import StepClock

METRICS, VALIDATION, SPIKES = "metrics.jsonl", "validation.jsonl", "spikes.jsonl"


class _TrainedModule(Protocol):
    """The attributes of `monet.training.module.MonetLightningModule` that this module reads, without importing it."""

    model: Any
    guard: Any
    freeze_dense: bool
    tokens_seen: int
    validation_result: dict[str, Any] | None

    def take_step_metrics(self) -> dict[str, Any]:
        """Return the numbers of the optimiser step that just ended."""
        ...


class RouterHealth:
    """Tracks dead routing keys: remembers at which step each (group, side, head, key) cell last fired.

    A cell is dead if no token reached it in the last `window_steps` optimiser steps (in fewer at the run's start).
    A dead key gets no gradient, so it does not recover by itself.
    """

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self.last_fired_R2HE: Tensor | None = None

    def update(self, fired_R2HE: Tensor, step: int) -> None:
        """Record the keys that fired.

        Args:
            fired_R2HE: bool, for each routing group whether a token reached the key in this step.
            step: the optimiser step of these tokens, 1-based.
        """
        if self.last_fired_R2HE is None:
            self.last_fired_R2HE = torch.zeros_like(fired_R2HE, dtype=torch.int64)
        self.last_fired_R2HE = self.last_fired_R2HE.to(fired_R2HE.device).masked_fill(fired_R2HE, step)

    def dead_share(self, step: int) -> Tensor:
        """Return (R,) float64: share of dead cells of each router after `step`, in [0, 1]; empty before any update."""
        if self.last_fired_R2HE is None:
            return torch.empty(0, dtype=torch.float64)
        dead = step - self.last_fired_R2HE >= min(self.window_steps, step)
        return dead.flatten(1).double().mean(1)

    def state_dict(self) -> dict[str, Any]:
        return {"last_fired_R2HE": self.last_fired_R2HE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_fired_R2HE = state["last_fired_R2HE"]


def truncate_log(path: Path, step: int) -> None:
    """Cut off entries after `step`, which a continued run writes again, and a half-written last line.

    Steps increase from line to line, so only the lines that are cut off are read.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = len(content)
            while end:
                start = content.rfind(b"\n", 0, end - 1) + 1
                if _is_until(content[start:end], step):
                    break
                end = start
            ends_in_line = end > 0 and content[end - 1] != ord("\n")
        file.truncate(end)
        if ends_in_line:
            file.seek(end)
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())


def _is_until(line: bytes, step: int) -> bool:
    """Return whether a log's line is complete and not of a later step."""
    try:
        entry = parse_json(line, "a line of a log")
    except DataError:
        return False
    return isinstance(entry, dict) and entry.get("step", step + 1) <= step


class MetricsLog(Callback):
    """Writes run_dir/metrics.jsonl, one line per optimiser step, and passes the numbers to Lightning's loggers.

    Every line goes to the operating system at once, and is on the disk before a checkpoint of its step.
    Only rank 0 writes.

    Args:
        run_dir: the run's folder.
        clock: measures seconds of training; code that interrupts training resumes it.
        throughput_steps: tokens per second is a mean over this many steps.
    """

    def __init__(self, run_dir: Path, clock: StepClock, throughput_steps: int = 20) -> None:
        self.run_dir, self.clock = run_dir, clock
        self.finished: deque[tuple[float, int]] = deque(maxlen=throughput_steps)
        self.logged_step = self.logged_tokens = 0
        self.flops_per_token, self.peak_flops = 0.0, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _module(pl_module).guard.dump_folder = self.run_dir / "nonfinite"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _module(pl_module)
        self.logged_step, self.logged_tokens = trainer.global_step, module.tokens_seen
        self.finished.clear()
        data = trainer.datamodule  # type: ignore[attr-defined]
        config = module.model.config
        seq_len = getattr(data, "seq_len", None) or config.max_position_embeddings
        self.flops_per_token = training_flops_per_token(config, seq_len, freeze_dense=module.freeze_dense)
        self.peak_flops = peak_flops(trainer.strategy.root_device)
        if trainer.is_global_zero:
            for name in (METRICS, VALIDATION, SPIKES):  # a continued run writes later entries again
                truncate_log(self.run_dir / name, trainer.global_step)
            (self.run_dir / METRICS).touch()  # the file exists from the start, even if loggers fail
        self.clock.resume()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.clock.batch_arrived()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.batch_done()
        if trainer.global_step == self.logged_step:  # still accumulating gradients
            return
        self.logged_step = trainer.global_step
        module = _module(pl_module)
        step_seconds, wait_seconds = self.clock.take()
        tokens_per_step, self.logged_tokens = module.tokens_seen - self.logged_tokens, module.tokens_seen
        self.finished.append((step_seconds, tokens_per_step))
        seconds, tokens = (sum(column) for column in zip(*self.finished, strict=True))
        metrics = module.take_step_metrics()
        tokens_per_second = tokens / max(seconds, 1e-9)
        metrics |= {
            "tokens_per_second": tokens_per_second,
            "mfu": self._utilisation(tokens_per_second, trainer.world_size),
            "step_seconds": step_seconds,
            "data_wait_share": wait_seconds / max(step_seconds, 1e-9),
            "memory_bytes": memory_bytes(trainer.strategy.root_device),
            "tokens_seen": module.tokens_seen,
        }
        if not trainer.is_global_zero:
            return
        self._write(METRICS, {"step": trainer.global_step, **metrics})
        if (spike := module.guard.spike) is not None:
            self._write(SPIKES, spike)
            print(f"step {spike['step']}  loss {spike['loss']:.4f} is a spike, see {SPIKES}", flush=True)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            print(_progress(trainer.global_step, trainer.max_steps, metrics, tokens_per_step), flush=True)
            _hand_on(trainer, {f"train/{name}": value for name, value in metrics.items()})

    def _utilisation(self, tokens_per_second: float, world_size: int) -> float | None:
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops_per_token / (self.peak_flops * world_size)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _module(pl_module)
        if trainer.is_global_zero and module.validation_result is not None and not trainer.sanity_checking:
            self._write(VALIDATION, {"step": trainer.global_step, **module.validation_result})
            print(validation_line(trainer.global_step, module.validation_result), flush=True)
            _hand_on(trainer, _flat_validation(module.validation_result))
        self.clock.resume()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for name in (METRICS, VALIDATION, SPIKES):
            if (self.run_dir / name).is_file():
                fsync_path(self.run_dir / name)

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        line = json.dumps(_without_nonfinite(entry), allow_nan=False) + "\n"
        try:
            with open(self.run_dir / name, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise MonetError(
                f"cannot add {len(line)} bytes to {self.run_dir / name}: {error.strerror}; the newest checkpoint is"
                " intact, so the same command continues from it"
            ) from error


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory of tensors on a CUDA device; elsewhere the present memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _without_nonfinite(value: Any) -> Any:
    """Replace NaN and infinite numbers in the entry by null, because JSON cannot represent them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    return [_without_nonfinite(item) for item in value] if isinstance(value, list) else value


def _hand_on(trainer: Trainer, metrics: dict[str, Any]) -> None:
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)


def _flat_validation(result: dict[str, Any]) -> dict[str, float]:
    names = [name for name in ("loss", "perplexity", "kl") if name in result]
    flat = {f"validation/{name}": result[name] for name in names}
    for name in names:
        flat |= {f"validation/{name}/{domain}": value for domain, value in result[f"{name}_by_domain"].items()}
    return flat


def _progress(step: int, max_steps: int, metrics: dict[str, Any], tokens_per_step: int) -> str:
    left = timedelta(seconds=round((max_steps - step) * tokens_per_step / metrics["tokens_per_second"]))
    dead = "" if metrics["dead_share"] is None else f"  dead {metrics['dead_share']:.1%}"
    norm = "" if metrics["grad_norm"] is None else f"  gradient {metrics['grad_norm']:.2f}"
    mfu = "" if metrics["mfu"] is None else f"  MFU {metrics['mfu']:.1%}"
    return (
        f"step {step}/{max_steps}  loss {metrics['loss']:.4f}{dead}{norm}  rate {metrics['learning_rate']:.2e}"
        f"  {metrics['tokens_per_second']:,.0f} tokens/s{mfu}  {left} left"
    )


def validation_line(step: int, result: dict[str, Any]) -> str:
    """Return the line that a start prints for a validation."""
    domains = "  ".join(f"{name} {value:.1f}" for name, value in result["perplexity_by_domain"].items())
    divergence = f"  KL from the teacher {result['kl']:.3f}" if "kl" in result else ""
    return f"step {step}  validation perplexity {result['perplexity']:.2f}{divergence}  ({domains})"


def _module(module: LightningModule) -> _TrainedModule:
    return cast(Any, module)
