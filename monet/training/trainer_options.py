"""Options of Lightning's trainer that a run accepts, and replacements for the others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from monet.errors import ConfigError
from monet.training.private.lightning import inside_step
from monet.training.strategies import Zero

PRECISIONS = ("32", "32-true", "bf16", "bf16-mixed", "bf16-true", "64", "64-true")  # those without loss scaling
_NO_EPOCHS = "the training data are an endless stream without epochs; end the run with trainer.max_steps"
# Option of the trainer: its harmless values, and why any other value is refused.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "logger": ((None, False), "it cannot be set here; use run_dir and loggers"),
    "default_root_dir": ((None,), "it cannot be set here; use run_dir and loggers"),
    "max_epochs": ((None, -1), _NO_EPOCHS),
    "min_epochs": ((None,), _NO_EPOCHS),
    "limit_train_batches": ((None, 1.0), _NO_EPOCHS),
    "overfit_batches": ((0, 0.0), f"{_NO_EPOCHS}, and choose a small data set with data.data_dir"),
    "fast_dev_run": ((False, 0), "it would validate only the first domains; use a small trainer.max_steps"),
    "reload_dataloaders_every_n_epochs": ((0,), _NO_EPOCHS),
    "check_val_every_n_epoch": ((None,), f"{_NO_EPOCHS}, and set the interval with trainer.val_check_interval"),
    "limit_val_batches": (
        (None, 0, 0.0, 1.0),
        "the first batches hold only the first domains; limit the windows of every domain with data.max_val_windows, or"
        " set 0 for a run without validation",
    ),
    "gradient_clip_algorithm": ((None, "norm"), "gradients are clipped by norm only"),
}  # fmt: skip


def read_integers_first(parser: ArgumentParser) -> None:
    """Make the parser read `1` as the integer 1 for every option that takes an integer or a float.

    The parser tries the types of a union in their order. typing caches unions and treats Union[int, float] and
    Union[float, int] as equal, so the order in Lightning's options depends on earlier imports of the process. To
    Lightning, 1 is one batch and 1.0 is all batches.
    """
    action: Any
    for action in parser._actions:
        members = get_args(kind := getattr(action, "_typehint", None))
        if get_origin(kind) in (Union, UnionType) and {int, float} <= set(members):
            ordered = sorted(members, key=lambda member: member is float)
            action._typehint = reduce(or_, ordered)  # `|` has no cache


def refuse_options(trainer: Any) -> None:
    """Refuse options of Lightning's trainer that would make a run differ from its own report.

    Args:
        trainer: the options by name, as attributes.
    Raises:
        ConfigError: names the option, its value, and the replacement.
    """
    for name, (harmless, reason) in _REFUSED.items():
        value = getattr(trainer, name)
        # 1 (one batch) is not 1.0 (a share of all batches)
        if not any(value == other and isinstance(value, type(other)) for other in harmless):
            raise ConfigError(f"trainer.{name} = {value}: {reason}")
    if (precision := trainer.precision) is not None and str(precision) not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision = {precision}: gradients of a scaled loss cannot be clipped and checked here; use"
            " bf16-mixed or 32-true"
        )


def tokens_per_step(trainer: Trainer, data: Any = None) -> int:
    """Return the number of tokens that an optimiser step predicts, over all processes.

    Args:
        trainer: gives the number of processes and of micro-batches in a step.
        data: has `seq_len` and `batch_size`; None uses the trainer's data module.
    """
    data = trainer.datamodule if data is None else data  # type: ignore[attr-defined]
    windows = getattr(data, "batch_size", 1) * trainer.accumulate_grad_batches * trainer.world_size
    return windows * getattr(data, "seq_len", 1)


def refuse_compiled_partitions(trainer: Trainer) -> None:
    """Refuse to compile a model whose weights are partitioned by ZeRO 3.

    Raises:
        ConfigError: names the strategies that can be compiled.
    """
    if isinstance(trainer.strategy, Zero) and trainer.strategy.zero_stage_3:
        raise ConfigError(
            "compile = true: ZeRO 3 gathers weights between operations, so a compiled model would find empty weights;"
            " use ddp, fsdp2, zero1 or zero2, or leave compile out"
        )


def warn_of_rounded_updates(trainer: Trainer) -> None:
    """Warn if the precision keeps weights and moments only in bfloat16."""
    if trainer.precision == "bf16-true" and not isinstance(trainer.strategy, Zero):
        rank_zero_warn(
            "trainer.precision = bf16-true keeps weights and moments in bfloat16 without a float32 copy: an update"
            " below about 1/256 of a weight is rounded away. bf16-mixed and the zero strategies keep float32 weights"
        )


def refuse_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse user callbacks that do the run's own work.

    Raises:
        ConfigError: a callback writes checkpoints, or limits the total time over all starts.
    """
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, Checkpoint):
            raise ConfigError(
                f"trainer.callbacks: {name} would write checkpoints of another format in another folder; use"
                " checkpoint_every, checkpoint_keep_every and checkpoint_keep_best"
            )
        if isinstance(callback, Timer):
            raise ConfigError(
                f"trainer.callbacks: {name} adds up the time of all starts, so a run that it stopped could never"
                " continue; use trainer.max_time, which counts for each start"
            )


class TimeLimit(Timer):
    """Ends a run after the first optimiser step that finishes at least `duration` after the start of training.

    The time counts from each start; a checkpoint does not store it.

    Args:
        duration: DD:HH:MM:SS, a timedelta, or its arguments by name.
    Raises:
        ConfigError: the duration cannot be parsed.
    """

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        try:
            super().__init__(duration)
        except (MisconfigurationException, TypeError) as error:
            raise ConfigError(f"trainer.max_time = {duration}: {error}") from None
        self.reached = False

    @override
    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        pass  # every start makes at least one step

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if inside_step(trainer):
            return
        self._check_time_remaining(trainer)
        self.reached = self.reached or trainer.should_stop

    @override
    def state_dict(self) -> dict[str, Any]:
        return {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
