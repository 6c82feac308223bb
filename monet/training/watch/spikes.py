"""Detects steps whose loss is far above the losses before it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple


class Spike(NamedTuple):
    """Mean and standard deviation of the window below a spike."""

    mean: float
    deviation: float


class SpikeWindow:
    """The latest finite losses, and the rule that decides whether the next loss is a spike.

    A non-finite value is never stored. Otherwise mean and deviation would be NaN, and every comparison with them would
    be false until the value left the window.

    Args:
        size: number of losses in the window.
        least: number of losses needed before a loss can count as a spike.
        deviations: number of standard deviations above the mean at which a loss counts as a spike.
    """

    def __init__(self, size: int = 128, least: int = 32, deviations: float = 6.0) -> None:
        self.least, self.deviations = least, deviations
        self._losses: deque[float] = deque(maxlen=size)

    def judge(self, loss: float) -> Spike | None:
        """Compare a step's loss with the window, then add it; None if the loss is not a spike or not finite."""
        if not math.isfinite(loss):
            return None
        spike = None
        if (count := len(self._losses)) >= self.least:
            mean = math.fsum(self._losses) / count
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in self._losses) / count)
            if loss > mean + self.deviations * deviation:
                spike = Spike(mean, deviation)
        self._losses.append(loss)
        return spike

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses.clear()
        self._losses.extend(state["losses"])
