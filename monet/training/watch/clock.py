"""Seconds that a run trains, apart from what interrupts it."""

from __future__ import annotations

import time


class StepClock:
    """Seconds of training, apart from those of validations and checkpoints.

    A step's time runs from the end of the work before it to its own end; what passes until its batch has arrived on
    the device is waiting for data. Clock time that jumps does not matter.
    """

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._step = self._wait = 0.0

    def resume(self) -> None:
        """Something other than training has ended: forget the time it took."""
        self._mark = time.perf_counter()

    def batch_arrived(self) -> None:
        """The loop has its next batch."""
        self._wait += self._advance()

    def batch_done(self) -> None:
        """The batch's work has ended."""
        self._step += self._advance()

    def take(self) -> tuple[float, float]:
        """Seconds of the optimiser step that just ended, and the part of them spent waiting for data."""
        seconds, wait = self._step + self._wait, self._wait
        self._step = self._wait = 0.0
        return seconds, wait

    def _advance(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before
