"""All private parts of Lightning that Monet uses. Checked with Lightning 2.6.4, the upper bound is 2.7.

A new release of Lightning may change any of them. Read this file when you raise the bound in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from typing_extensions import override


def inside_step(trainer: Trainer) -> bool:
    """Whether the gradients of the batch under way, or of the one that just ended, still wait for an update."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validates_now(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that just ended."""
    loop = trainer.fit_loop.epoch_loop
    if not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
        return False
    loop.val_loop.setup_data()  # as the validation does first; only then it is known whether there are data for one
    return not loop.val_loop.skip


def unwrapped(optimizer: Any) -> Any:
    """torch's optimiser, out of Lightning's wrapper if it has one."""
    return getattr(optimizer, "_optimizer", optimizer)


def switch_off_sigterm_agreement(trainer: Trainer) -> None:
    """Switch off Lightning's agreement on SIGTERM, in which the host waits for the device in every micro-batch."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def validate_at_the_interval_only(trainer: Trainer) -> None:
    """Switch off the validation that Lightning adds where something stops the run.

    A run that is stopped and continues then has the validations of an uninterrupted one, and ends in time.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    is_due = loop._should_check_val_fx

    def is_due_without_stop(data_fetcher: Any) -> bool:
        stops, trainer.should_stop = trainer.should_stop, False
        try:
            return is_due(data_fetcher)
        finally:
            trainer.should_stop = stops

    loop._should_check_val_fx = is_due_without_stop


def tell_checkpoint(trainer: Trainer, path: Any) -> None:
    """Let `trainer.ckpt_path` be known to hooks that run before Lightning loads the checkpoint."""
    trainer._checkpoint_connector._ckpt_path = path


class RunTrainer(Trainer):
    """Lightning's trainer, with a method around everything that it does in a run."""

    def around_run(self, model: LightningModule, ckpt_path: Any, run: Callable[[Any], Any]) -> Any:
        """Call `run` with the checkpoint to continue from, and return its result; for subclasses to override."""
        return run(ckpt_path)

    @override
    def _run(self, model: LightningModule, ckpt_path: Any = None, **kwargs: Any) -> Any:
        run = super()._run
        return self.around_run(model, ckpt_path, lambda path: run(model, ckpt_path=path, **kwargs))


class EngineStrategy(DeepSpeedStrategy):
    """Lightning's strategy for DeepSpeed, with public names for what a subclass replaces or calls."""

    def make_engine(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        """DeepSpeed's engine and optimiser for a model; for subclasses to override."""
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def start_deepspeed_processes(self) -> None:
        """Connect the ranks, whatever the device is."""
        self._init_deepspeed_distributed()

    @override
    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        return self.make_engine(model, optimizer, lr_scheduler)


def shard_over_all_ranks(strategy: ModelParallelStrategy) -> None:
    """Set the strategy's data-parallel size to the number of processes, before its environment is set up."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
