"""train.py's command in which the loss of rank 1 is NaN once: `python bad_rank.py fit ...`."""

import sys

import torch

from monet.training.cli import main
from monet.training.module import MonetLightningModule

torch.set_num_threads(1)
step = MonetLightningModule.training_step


def bad_once(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    if self.trainer.global_rank == 1 and self.trainer.global_step == 5 and self.guard.skipped_in_a_row == 0:
        loss = loss * float("nan")
        self.guard.record._values[-1][0] = float("nan")
    return loss


MonetLightningModule.training_step = bad_once
sys.exit(main())
