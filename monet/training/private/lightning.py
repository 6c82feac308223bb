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
    """Return whether gradients of the current or last batch still wait for an update."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validates_now(trainer: Trainer) -> bool:
    """Return whether a validation follows the batch that just ended."""
    loop = trainer.fit_loop.epoch_loop
    if not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
        return False
    loop.val_loop.setup_data()  # the validation does this first; only then is it known whether there are data
    return not loop.val_loop.skip


def unwrapped(optimizer: Any) -> Any:
    """Return torch's optimiser, without Lightning's wrapper if it has one."""
    return getattr(optimizer, "_optimizer", optimizer)


def switch_off_sigterm_agreement(trainer: Trainer) -> None:
    """Switch off Lightning's agreement on SIGTERM, which makes the host wait for the device in every micro-batch."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def validate_at_the_interval_only(trainer: Trainer) -> None:
    """Switch off the validation that Lightning adds when a run is stopped.

    A stopped and continued run then has the same validations as an uninterrupted one, and ends in time.
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
    """Set `trainer.ckpt_path` for hooks that run before Lightning loads the checkpoint."""
    trainer._checkpoint_connector._ckpt_path = path


class RunTrainer(Trainer):
    """Lightning's trainer, with a method around all of its work in a run."""

    def around_run(self, model: LightningModule, ckpt_path: Any, run: Callable[[Any], Any]) -> Any:
        """Call `run` with the checkpoint to continue from, and return its result; for subclasses to override."""
        return run(ckpt_path)

    @override
    def _run(self, model: LightningModule, ckpt_path: Any = None, **kwargs: Any) -> Any:
        run = super()._run
        return self.around_run(model, ckpt_path, lambda path: run(model, ckpt_path=path, **kwargs))


class EngineStrategy(DeepSpeedStrategy):
    """Lightning's strategy for DeepSpeed, with public names for the methods that a subclass replaces or calls."""

    def make_engine(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        """Return DeepSpeed's engine and optimiser for a model; for subclasses to override."""
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    def start_deepspeed_processes(self) -> None:
        """Connect the ranks on any device."""
        self._init_deepspeed_distributed()

    @override
    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        return self.make_engine(model, optimizer, lr_scheduler)


def shard_over_all_ranks(strategy: ModelParallelStrategy) -> None:
    """Set the strategy's data-parallel size to the number of processes, before its environment is set up."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
