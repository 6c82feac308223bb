"""Decides when checkpoints are written and deleted, handles failures, and stops the run after a save."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from monet.errors import CheckpointError
from monet.training.checkpoints.background import BackgroundCheckpointIO
from monet.training.checkpoints.checkpoint import prune, step_folder, step_of
from monet.training.private.deepspeed import full_numel
from monet.training.private.lightning import inside_step, validates_now
from monet.training.ranks.agree import Requests, any_rank
from monet.training.watch.clock import StepClock
from monet.training.watch.guard import StepGuard
from monet.training.watch.signals import Stopped

FailurePolicy = Literal["stop", "continue"]
_NO_BEST: tuple[float | None, int | None] = (None, None)  # lowest validation loss so far, and its step


class StepCheckpoint(Checkpoint):
    """Writes a checkpoint every few optimiser steps, on request, and at the run's end; deletes old ones.

    A step whose update was skipped gets no checkpoint, unless the run ends with it; the next good step gets one.

    Args:
        checkpoints: folder of the checkpoints.
        every_n_steps: optimiser steps between checkpoints.
        keep_last: number of newest checkpoints to keep; at least one of them is always valid.
        on_failure: stop ends the run if a checkpoint cannot be written; continue warns and tries again when the next
            one is due. The checkpoint at the end of a run must always succeed.
        clock: stops while a checkpoint is saved; None measures nothing.
        keep_every: keep the first checkpoint of every interval of this many steps permanently; None keeps none.
        keep_best: also save a checkpoint at each new lowest validation loss, and keep it until the next one.
    """

    def __init__(
        self,
        checkpoints: Path,
        every_n_steps: int,
        keep_last: int,
        on_failure: FailurePolicy = "stop",
        clock: StepClock | None = None,
        keep_every: int | None = None,
        keep_best: bool = False,
    ) -> None:
        self.checkpoints, self.every_n_steps, self.keep_last = checkpoints, every_n_steps, keep_last
        self.on_failure, self.clock = on_failure, clock
        self.keep_every, self.keep_best = keep_every, keep_best
        self.best = self._best_before = _NO_BEST
        self.saved_step = 0  # step of the newest checkpoint, finished or in progress
        self.tried_step = 0
        self._being_written: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_step = self.tried_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if inside_step(trainer):
            return
        self._look_after_write(trainer)
        # save a validated step after its validation: a run killed in between repeats the validation
        if not validates_now(trainer):
            self._after_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and not inside_step(trainer):
            self._note_validation(trainer)
            self._after_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # max_time or an early stop ends runs between two multiples
        if trainer.global_step != self.saved_step:
            if inside_step(trainer):
                rank_zero_warn(
                    f"the run was stopped inside a step; its newest checkpoint is that of step {self.saved_step}, so"
                    f" the steps to {trainer.global_step} are repeated when it continues"
                )
            else:
                self._save(trainer, must=True)
        self._look_after_write(trainer, wait=True, must=True)

    def _after_step(self, trainer: Trainer) -> None:
        requests = _requests(trainer)
        if (number := requests.agreed_stop) and trainer.global_step < trainer.max_steps:
            if trainer.global_step != self.saved_step:
                self._save(trainer, must=True)
            self._look_after_write(trainer, wait=True, must=True)
            name = signal.Signals(number).name
            rank_zero_only(print)(
                f"stopped by {name} after step {trainer.global_step}; run the same command to continue", flush=True
            )
            raise Stopped(128 + number)
        if self._is_due(trainer) or (requests.agreed_save and trainer.global_step > self.saved_step):
            self._save(trainer, must=trainer.global_step == trainer.max_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        loss, step = state_dict["best"]
        self.best = (loss, step)

    def _note_validation(self, trainer: Trainer) -> None:
        result = getattr(trainer.lightning_module, "validation_result", None)
        if self.keep_best and result is not None and not _was_skipped(trainer):
            least, _ = self.best
            if least is None or result["loss"] < least:
                self._best_before, self.best = self.best, (result["loss"], trainer.global_step)

    def _is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        passed_multiple = step // self.every_n_steps > self.tried_step // self.every_n_steps
        good = (passed_multiple and not _was_skipped(trainer)) or step == self.best[1]
        return step > self.saved_step and (good or step == trainer.max_steps)

    def _save(self, trainer: Trainer, must: bool) -> None:
        self._look_after_write(trainer, wait=True, must=False)
        step = self.tried_step = trainer.global_step
        folder = step_folder(self.checkpoints, step)
        try:
            trainer.save_checkpoint(folder, weights_only=False)
        except CheckpointError as error:  # on all ranks
            self._failed(error, trainer, must)
        except OSError as error:  # before the ranks met: the others would wait in a save that this rank never reaches
            self._failed(error, trainer, must or trainer.world_size > 1)
        else:
            self.saved_step, self._being_written = step, folder
            self._look_after_write(trainer, must=must)
        _requests(trainer).saved()
        if self.clock is not None:
            self.clock.resume()

    def _look_after_write(self, trainer: Trainer, wait: bool = False, must: bool = False) -> None:
        """Raise or report the error of a write; delete old checkpoints after a success."""
        if (folder := self._being_written) is None:
            return
        io = trainer.strategy.checkpoint_io
        if isinstance(io, BackgroundCheckpointIO):
            try:
                if wait:
                    io.finish()
                elif any_rank(not io.is_idle, trainer.strategy):  # a failure on one rank is a failure on all
                    return
                else:
                    io.poll()
            except (CheckpointError, OSError) as error:
                self._being_written, self.saved_step = None, -1
                self._failed(error, trainer, must)
                return
        self._being_written = None
        if trainer.is_global_zero:
            loss, best_step = self.best
            prune(self.checkpoints, self.keep_last, self.keep_every, best_step)
            note = f"  lowest validation loss so far, {loss:.4f}" if step_of(folder) == best_step else ""
            print(f"checkpoint {folder}{note}", flush=True)

    def _failed(self, error: Exception, trainer: Trainer, must: bool) -> None:
        if self.best[1] == self.tried_step:
            self.best = self._best_before
        folder = self.checkpoints if self.checkpoints.is_dir() else self.checkpoints.parent
        needed, free = checkpoint_bytes(trainer.lightning_module), shutil.disk_usage(folder).free
        text = (
            f"{error}; a checkpoint takes about {needed:,} bytes, and {free:,} are free in {folder} (a quota can leave"
            " less)"
        )
        if must or self.on_failure == "stop":
            raise CheckpointError(text) from error
        rank_zero_warn(f"{text}; training continues, and the next checkpoint is tried when it is due")


def checkpoint_bytes(module: LightningModule) -> int:
    """Estimate a checkpoint's size: weights, the routers' statistics, and two float32 moments per trained weight."""
    sizes = [(p, full_numel(p)) for p in module.parameters()]
    weights = sum(size * p.element_size() for p, size in sizes) + sum(
        b.numel() * b.element_size() for b in module.buffers()
    )
    return weights + sum(8 * size for p, size in sizes if p.requires_grad)


def _requests(trainer: Trainer) -> Requests:
    guard = getattr(trainer.lightning_module, "guard", None)
    return guard.requests if isinstance(guard, StepGuard) else Requests()


def _was_skipped(trainer: Trainer) -> bool:
    """Return whether the update of the step that just ended was skipped."""
    guard = getattr(trainer.lightning_module, "guard", None)
    return isinstance(guard, StepGuard) and guard.skipped_in_a_row > 0
