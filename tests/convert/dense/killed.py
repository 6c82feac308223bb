"""Runs a command line of monet and sends this process a signal after a step of a stage: STAGE STEP SIGNAL WORDS..."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from monet.cli import main
from monet.convert.dense.local import LocalTraining
from monet.training.module import MonetLightningModule


def run(stage: int, step: int, name: str, words: list[str]) -> int:
    torch.set_num_threads(1)
    learn, begin = LocalTraining.learn, MonetLightningModule.on_train_batch_start

    def learn_and_signal(self: LocalTraining, batch: Any) -> Any:
        found = learn(self, batch)
        if stage == 1 and self.step == step:
            os.kill(os.getpid(), getattr(signal, name))
        return found

    def begin_or_signal(self: MonetLightningModule, *arguments: Any) -> None:
        if stage == 2 and self.trainer.global_step == step:
            os.kill(os.getpid(), getattr(signal, name))
        begin(self, *arguments)

    LocalTraining.learn = learn_and_signal
    MonetLightningModule.on_train_batch_start = begin_or_signal
    return main(words)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
