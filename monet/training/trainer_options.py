"""Which of Lightning's trainer options a run takes, and what to use in place of the others."""

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

PRECISIONS = ("32", "32-true", "bf16", "bf16-mixed", "bf16-true", "64", "64-true")  # those that scale no loss
_NO_EPOCHS = "the training data are an endless stream without epochs; end the run by trainer.max_steps"
# Option of the trainer: the values that change nothing, and why any other one is refused.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "logger": ((None, False), "it cannot be set here; use run_dir and loggers"),
    "default_root_dir": ((None,), "it cannot be set here; use run_dir and loggers"),
    "max_epochs": ((None, -1), _NO_EPOCHS),
    "min_epochs": ((None,), _NO_EPOCHS),
    "limit_train_batches": ((None, 1.0), _NO_EPOCHS),
    "overfit_batches": ((0, 0.0), f"{_NO_EPOCHS}, and choose few data with data.data_dir"),
    "fast_dev_run": ((False, 0), "it would validate the first domains only; take a small trainer.max_steps"),
    "reload_dataloaders_every_n_epochs": ((0,), _NO_EPOCHS),
    "check_val_every_n_epoch": ((None,), f"{_NO_EPOCHS}, and set the rhythm by trainer.val_check_interval"),
    "limit_val_batches": (
        (None, 0, 0.0, 1.0),
        "the first batches hold the first domains only; limit the windows of every domain by data.max_val_windows, or"
        " set 0 for a run without validation",
    ),
    "gradient_clip_algorithm": ((None, "norm"), "gradients are clipped by norm only"),
}  # fmt: skip


def read_integers_first(parser: ArgumentParser) -> None:
    """Have the parser read `1` as the integer 1 for every option that takes an integer or a float.

    The parser tries the types of a union in their order. typing caches unions, and for its cache Union[int, float]
    equals Union[float, int]: which order Lightning's options get depends on what the process imported before. To
    Lightning, 1 is one batch and 1.0 is all batches.
    """
    action: Any
    for action in parser._actions:
        members = get_args(kind := getattr(action, "_typehint", None))
        if get_origin(kind) in (Union, UnionType) and {int, float} <= set(members):
            ordered = sorted(members, key=lambda member: member is float)
            action._typehint = reduce(or_, ordered)  # `|` has no cache


def refuse_options(trainer: Any) -> None:
    """Refuse options of Lightning's trainer that would make a run other than what it reports.

    Args:
        trainer: the options by name, as attributes.
    Raises:
        ConfigError: names the option, its value, and what to use.
    """
    for name, (harmless, reason) in _REFUSED.items():
        value = getattr(trainer, name)
        # 1 batch is not 1.0, a share of all batches
        if not any(value == other and isinstance(value, type(other)) for other in harmless):
            raise ConfigError(f"trainer.{name} = {value}: {reason}")
    if (precision := trainer.precision) is not None and str(precision) not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision = {precision}: gradients of a scaled loss cannot be clipped and checked here; take"
            " bf16-mixed or 32-true"
        )


def tokens_per_step(trainer: Trainer, data: Any = None) -> int:
    """Tokens that an optimiser step predicts, over all processes.

    Args:
        trainer: knows the processes and the micro-batches of a step.
        data: has `seq_len` and `batch_size`; None takes the trainer's data module.
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
            "compile = true: ZeRO 3 gathers weights between operations, where a compiled model would find empty ones;"
            " take ddp, fsdp2, zero1 or zero2, or leave compile out"
        )


def warn_of_rounded_updates(trainer: Trainer) -> None:
    """Say it where the precision keeps weights and moments in bfloat16 alone."""
    if trainer.precision == "bf16-true" and not isinstance(trainer.strategy, Zero):
        rank_zero_warn(
            "trainer.precision = bf16-true keeps weights and moments in bfloat16 without a float32 copy: an update"
            " below about 1/256 of a weight is rounded away. bf16-mixed and the zero strategies keep float32 weights"
        )


def refuse_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks of a user that do what the run does itself.

    Raises:
        ConfigError: one writes checkpoints, or limits the time over all starts together.
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
                f"trainer.callbacks: {name} adds up the time of all starts, so a run that it stopped would never"
                " continue; use trainer.max_time, which counts for each start"
            )


class TimeLimit(Timer):
    """Ends a run after the first optimiser step that ends `duration` or later after the training began.

    The time counts for each start: a checkpoint does not keep it.

    Args:
        duration: DD:HH:MM:SS, a timedelta, or its arguments by name.
    Raises:
        ConfigError: the text has another form.
    """

    def __init__(self, duration: str | timedelta | dict[str, int]) -> None:
        try:
            super().__init__(duration)
        except (MisconfigurationException, TypeError) as error:
            raise ConfigError(f"trainer.max_time = {duration}: {error}") from None
        self.reached = False

    @override
    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        pass  # every start makes one step at least

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
