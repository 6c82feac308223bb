"""Runs a command line of monet and sends this process a signal after a step of stage 1: STEP SIGNAL WORDS..."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from monet.cli import main
from monet.convert.dense.local import LocalTraining


def run(step: int, name: str, words: list[str]) -> int:
    torch.set_num_threads(1)
    learn = LocalTraining.learn

    def learn_and_signal(self: LocalTraining, batch: Any) -> Any:
        found = learn(self, batch)
        if self.step == step:
            os.kill(os.getpid(), getattr(signal, name))
        return found

    LocalTraining.learn = learn_and_signal
    return main(words)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
