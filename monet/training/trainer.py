"""Lightning's trainer for a run: all ranks start from one checkpoint, and validations come at their interval only."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from monet.training.coordination import ProcessRanks, is_broken_connection
from monet.training.strategies import Together


class TogetherTrainer(Trainer):
    """Lightning's trainer; with several processes, rank 0 says what all continue from."""

    finished = False  # there is nothing to do, and all ranks are to end

    def _run(self, model: LightningModule, ckpt_path: Any = None, **kwargs: Any) -> Any:
        if isinstance(self.strategy, Together):
            self.strategy.connect(model)
            self.strategy.setup_environment()
            choice = (ckpt_path and str(ckpt_path), self.finished)
            ckpt_path, self.finished = self.strategy.ranks.broadcast(choice, "choosing what to continue from")
            if self.finished:  # a rank that goes first would take the connections of the others with it
                self.strategy.barrier()
                torch.distributed.destroy_process_group()
        if self.finished:
            raise SystemExit(0)
        # Lightning's own agreement on SIGTERM has the host wait for the device in every micro-batch; ours
        # (monet/training/agree.py) is part of the numbers of a step
        self.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._validate_at_the_interval_only()
        # known to hooks that run before Lightning loads it
        self._checkpoint_connector._ckpt_path = ckpt_path
        try:
            return super()._run(model, ckpt_path=ckpt_path, **kwargs)
        except RuntimeError as error:
            ranks = self.strategy.ranks if isinstance(self.strategy, Together) else None
            if isinstance(ranks, ProcessRanks) and is_broken_connection(error):
                raise ranks.lost(error) from error
            raise

    def _validate_at_the_interval_only(self) -> None:
        """Switch off the validation that Lightning adds where something stops the run.

        A run that is stopped and continues then has the validations of an uninterrupted one, and ends in time.
        """
        loop: Any = self.fit_loop.epoch_loop
        is_due = loop._should_check_val_fx

        def is_due_without_stop(data_fetcher: Any) -> bool:
            stops, self.should_stop = self.should_stop, False
            try:
                return is_due(data_fetcher)
            finally:
                self.should_stop = stops

        loop._should_check_val_fx = is_due_without_stop
