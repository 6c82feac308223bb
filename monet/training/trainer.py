"""Lightning's trainer for a run: all ranks start from one checkpoint, and validations run only at their interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from typing_extensions import override

from monet.training.private.lightning import (
    RunTrainer,
    switch_off_sigterm_agreement,
    tell_checkpoint,
    validate_at_the_interval_only,
)
from monet.training.ranks.coordination import ProcessRanks, is_broken_connection
from monet.training.strategies import Together


class TogetherTrainer(RunTrainer):
    """Lightning's trainer; with several processes, rank 0 chooses the checkpoint that all ranks continue from."""

    finished = False  # the run is complete, so all ranks must end

    @override
    def around_run(self, model: LightningModule, ckpt_path: Any, run: Callable[[Any], Any]) -> Any:
        if isinstance(self.strategy, Together):
            self.strategy.connect(model)
            self.strategy.setup_environment()
            choice = (ckpt_path and str(ckpt_path), self.finished)
            ckpt_path, self.finished = self.strategy.ranks.broadcast(choice, "choosing what to continue from")
            if self.finished:  # a rank that ends first would break the connections of the others
                self.strategy.barrier()
                torch.distributed.destroy_process_group()
        if self.finished:
            raise SystemExit(0)
        # In Lightning's own agreement on SIGTERM, the host waits for the device in every micro-batch. Ours
        # (monet/training/ranks/agree.py) is part of the numbers of a step.
        switch_off_sigterm_agreement(self)
        validate_at_the_interval_only(self)
        tell_checkpoint(self, ckpt_path)
        try:
            return run(ckpt_path)
        except RuntimeError as error:
            ranks = self.strategy.ranks if isinstance(self.strategy, Together) else None
            if isinstance(ranks, ProcessRanks) and is_broken_connection(error):
                raise ranks.lost(error) from error
            raise
