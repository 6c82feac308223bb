"""Measures the seconds that a run trains, without interruptions."""

from __future__ import annotations

import time


class StepClock:
    """Seconds of training, without validations and checkpoints.

    A step's time runs from the end of the previous work to its own end. The time until its batch is on the device
    counts as waiting for data. Jumps of the system clock have no effect.
    """

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._step = self._wait = 0.0

    def resume(self) -> None:
        """Work other than training has ended: ignore its time."""
        self._mark = time.perf_counter()

    def batch_arrived(self) -> None:
        """The loop has its next batch."""
        self._wait += self._advance()

    def batch_done(self) -> None:
        """The work on the batch has ended."""
        self._step += self._advance()

    def take(self) -> tuple[float, float]:
        """Return the seconds of the optimiser step that just ended, and the seconds of waiting for data in it."""
        seconds, wait = self._step + self._wait, self._wait
        self._step = self._wait = 0.0
        return seconds, wait

    def _advance(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before
