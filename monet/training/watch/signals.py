"""Signals during training: end after the step with a checkpoint, end at once, or only save."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from monet.training.ranks.agree import Requests

ONE_SIGNAL_SECONDS = 1.0  # a scheduler signals every process of a job, and a launcher passes the signal on again


class Stopped(SystemExit):
    """The run ends after its checkpoint because of a signal; the exit code is 128 + the signal's number."""


class StopSignals(Callback):
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint; a second signal ends it at once, if it
    comes at least one second after the first. SIGUSR1 requests a checkpoint, and the run continues.

    Before the first step the signals have their usual effect, because there is nothing to save yet.

    Args:
        requests: stores the request; the code that writes checkpoints handles it.
    """

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self._pid, self._first_seconds = os.getpid(), 0.0
        self._replaced: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.install()  # only now, because Lightning registers its own handler

    def install(self) -> None:
        """Handle the signals from now on; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._replaced[number] = signal.signal(number, self._receive)

    def restore(self) -> None:
        """Restore the previous handlers of the signals."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a loader process: its parent decides
            return
        if number == signal.SIGUSR1:
            self.requests.save = True
        elif self.requests.stop:
            if time.monotonic() - self._first_seconds < ONE_SIGNAL_SECONDS:
                return
            _say(
                f"{signal.Signals(number).name} again: ending at once; the run can continue from its newest checkpoint"
            )
            os._exit(128 + number)
        else:
            self.requests.stop, self._first_seconds = number, time.monotonic()
            _say(f"{signal.Signals(number).name}: finishing the step and saving; a second signal ends the run at once")


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())  # the signal may have interrupted print
