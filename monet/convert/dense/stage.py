"""Runs stage 1: progress, checkpoints, signals, and continuation after a kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from tqdm import tqdm

from monet.convert.dense.local import LocalTraining
from monet.convert.dense.state import LayerCheckpoints
from monet.convert.dense.stream import StateStream
from monet.training.ranks.agree import Requests
from monet.training.watch.signals import Stopped, StopSignals

_QUIET_SECONDS = 30.0  # between two lines of progress in a file


def run_stage(
    training: LocalTraining,
    stream: StateStream,
    checkpoints: LayerCheckpoints,
    *,
    save_seconds: float,
    progress: bool,
) -> None:
    """Train to the last step, with a checkpoint now and then and at the end.

    SIGTERM and SIGINT end the run after the current step, with a checkpoint; SIGUSR1 only saves.

    Args:
        training: at its start, or at a checkpoint.
        stream: at the same place.
        checkpoints: where to save.
        save_seconds: time between two checkpoints; they do not change what is computed.
        progress: show the tokens, tokens per second, remaining time and FVU of each layer on standard error.
    Raises:
        Stopped: a signal asked to end; exit code 128 + its number.
        NonFiniteError: a loss is NaN or infinite.
    """
    requests = Requests()
    signals = StopSignals(requests)
    signals.install()
    saved = time.monotonic()
    calm: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": _QUIET_SECONDS, "ascii": True, "ncols": 120}
    total = training.steps * stream.tokens_per_batch
    try:
        with (
            closing(stream.batches()) as batches,
            tqdm(total=total, initial=training.tokens, unit="tok", unit_scale=True, desc="stage 1",
                 disable=not progress, **calm) as bar,
        ):  # fmt: skip
            shown: dict[int, float] = {}
            while training.step < training.steps:
                with training.seconds.of("dense model"):
                    batch = next(batches)
                found = training.learn(batch)
                shown = {layer: 0.9 * shown.get(layer, value) + 0.1 * value for layer, value in found.items()}
                bar.set_postfix_str(_fvu_line(shown), refresh=False)
                bar.update(batch.tokens)
                due = time.monotonic() - saved >= save_seconds
                if due or requests.save or requests.stop or training.step == training.steps:
                    checkpoints.save(training.step, whole_state(training, stream))
                    requests.save, saved = False, time.monotonic()
                if requests.stop and training.step < training.steps:
                    raise Stopped(128 + requests.stop)
    finally:
        signals.restore()


def whole_state(training: LocalTraining, stream: StateStream) -> dict[str, Any]:
    """What a checkpoint of stage 1 holds."""
    return {"training": training.state_dict(), "stream": stream.state_dict()}


def restore(state: Mapping[str, Any], training: LocalTraining, stream: StateStream) -> None:
    """Continue from the state of a checkpoint.

    Raises:
        DataError, ConfigError: the stream's position belongs to other data or settings.
    """
    stream.load_state_dict(state["stream"])
    training.load_state_dict(state["training"])


def _fvu_line(fvu: Mapping[int, float]) -> str:
    """FVU of each layer, or the mean and range of many layers."""
    if len(fvu) <= 6:
        return "FVU " + " ".join(f"{layer}:{value:.3f}" for layer, value in fvu.items())
    values = list(fvu.values())
    return f"FVU mean {sum(values) / len(values):.3f}, {min(values):.3f} to {max(values):.3f}"
