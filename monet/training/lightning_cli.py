"""LightningCLI with a run folder, safe checkpoints and Monet's defaults: the options of train.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from monet.cpu import speed_up_cpu
from monet.data.loading.datamodule import MonetDataModule
from monet.errors import ConfigError
from monet.files import atomic_write_text
from monet.training.checkpoints.background import BackgroundCheckpointIO
from monet.training.checkpoints.checkpoint import Selection, read_config
from monet.training.checkpoints.saving import FailurePolicy, StepCheckpoint
from monet.training.history import record_start
from monet.training.language_models import config_json
from monet.training.loggers import make_loggers
from monet.training.metrics import MetricsLog
from monet.training.module import MonetLightningModule
from monet.training.ranks.coordination import launched_environment, other_ranks_wait
from monet.training.run import RandomState, RunDirectory, TokenizerCopy
from monet.training.settings import ModelShape, refuse_structural_change
from monet.training.stage import StageCheckpointIO, refuse_other_model, stage_folder
from monet.training.strategies import NAMES, Together, by_name
from monet.training.trainer import TogetherTrainer
from monet.training.trainer_options import (
    TimeLimit,
    read_integers_first,
    refuse_callbacks,
    refuse_compiled_partitions,
    refuse_options,
    tokens_per_step,
    warn_of_rounded_updates,
)
from monet.training.watch.clock import StepClock
from monet.training.watch.signals import StopSignals

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # the loader is endless: max_steps ends a run
    "check_val_every_n_epoch": None,
    "val_check_interval": 1000,  # batches; without it an endless loader would never be validated
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "deterministic": "warn",  # exactly repeatable on the CPU; on a GPU some operations only warn
    "enable_progress_bar": False,  # MetricsLog prints a line every log_every_n_steps
    "enable_model_summary": False,
}
EPILOG = "`train.py validate --run DIR --data DIR` validates a checkpoint of a run; see `train.py validate --help`."
USAGE = "train.py fit --config FILE --run_dir DIR [--KEY VALUE ...]"


class RunConfig(SaveConfigCallback):
    """Writes the whole configuration to run_dir/config.yaml when training starts, and records what changed.

    It writes at no earlier time, so a refused start leaves the run unchanged, even if only the data position is wrong.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning makes the loggers write their configuration right after this hook
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config)))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            text = self.parser.dump(self.config)
            record_start(folder, text, trainer.global_step, pl_module.stage_from and Path(pl_module.stage_from))
            atomic_write_text(folder / self.config_filename, text)


class MonetCLI(LightningCLI):
    """`fit` on a run folder: continues automatically from the newest valid checkpoint."""

    run_directory: RunDirectory
    finished = False
    stage: Path | None = None  # checkpoint that a new run starts from
    time_limit: TimeLimit | None = None

    def __init__(self, args: ArgsType = None) -> None:
        self.selection = Selection(None, [])
        try:
            super().__init__(
                MonetLightningModule,
                MonetDataModule,
                trainer_class=TogetherTrainer,
                save_config_callback=RunConfig,
                seed_everything_default=0,
                parser_kwargs={
                    "epilog": EPILOG,
                    "fit": {"usage": USAGE, "description": "Start or continue the training run in run_dir."},
                },
                auto_configure_optimizers=False,
                args=args,
            )
        finally:
            if hasattr(self, "run_directory"):
                self.run_directory.release()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        # a run chooses its own checkpoint: ckpt_path would load a pickle
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        known_loggers = Literal["csv", "tensorboard", "wandb"]
        options: dict[str, tuple[Any, Any, str]] = {
            "stage_from": (
                str | None, None,
                "Folder of another run, or of its checkpoint: a new run starts with its weights and optimiser moments,"
                " with its own data and schedule. A run that continues ignores this option.",
            ),
            "max_tokens": (
                float | None, None,
                "Length of the run in tokens, instead of trainer.max_steps; rounded up to whole steps.",
            ),
            "checkpoint_every": (int, 1000, "Optimiser steps between checkpoints; the last step always gets one."),
            "checkpoint_keep": (int, 3, "Number of newest checkpoints to keep, at least 1."),
            "checkpoint_keep_every": (
                int | None, None,
                "Keep the first checkpoint of each interval of this many optimiser steps permanently; null keeps none.",
            ),
            "checkpoint_keep_best": (
                bool, False,
                "Also save a checkpoint at each new lowest validation loss, and keep it until the next one.",
            ),
            "checkpoint_async": (
                bool, False,
                "Write checkpoints in the background, from a copy in host memory; one at a time.",
            ),
            "checkpoint_failure": (
                FailurePolicy, "stop",
                "If a checkpoint cannot be written: stop, or continue and try again when the next one is due.",
            ),
            "loggers": (
                list[known_loggers], ["csv", "tensorboard"],
                "Loggers in addition to run_dir/metrics.jsonl; a logger that fails or is missing is left out.",
            ),
            "cpu_threads": (
                int | None, None,
                "torch's CPU threads; repeatable results need a fixed number; null leaves the choice to torch.",
            ),
            "compile": (
                bool, False,
                "Compile the model with torch.compile; the first steps then take minutes; needs a C++ compiler.",
            ),
            "fast_cpu": (
                bool, True,
                "On the CPU: float32 products by oneDNN if they are exact, freed memory kept (docs/performance.md).",
            ),
            "wandb_project": (str, "monet", "Project name for the logger wandb."),
        }  # fmt: skip
        text = "Folder of the run: created if new, continued if it holds checkpoints."
        parser.add_argument("--run_dir", type=str, required=True, help=text)
        for name, (kind, default, text) in options.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        parser.add_argument("--debug", action="store_true", help="Show the whole traceback of an error.")
        super().add_default_arguments_to_parser(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # like Lightning's own option, but listed before the many options of the trainer
        parser.add_lightning_class_args(MonetLightningModule, "model")
        parser.add_lightning_class_args(MonetDataModule, "data")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        read_integers_first(parser)
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        if config.max_tokens is not None and config.trainer.max_steps != -1:
            raise ConfigError(
                f"max_tokens = {config.max_tokens} and trainer.max_steps = {config.trainer.max_steps}: give only one;"
                " -1 leaves trainer.max_steps open"
            )
        for name, value in (
            ("checkpoint_every", config.checkpoint_every),
            ("checkpoint_keep", config.checkpoint_keep),
            ("checkpoint_keep_every", config.checkpoint_keep_every),
            ("cpu_threads", config.cpu_threads),
            ("max_tokens", config.max_tokens),
            ("trainer.max_steps", config.trainer.max_steps if config.max_tokens is None else None),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        refuse_options(config.trainer)
        if config.stage_from is not None and config.model.init_from is not None:
            raise ConfigError(
                f"stage_from = {config.stage_from} and model.init_from = {config.model.init_from}: give only one;"
                " init_from loads only the weights"
            )
        if config.cpu_threads is not None:
            torch.set_num_threads(config.cpu_threads)
        if config.fast_cpu and (config.trainer.accelerator == "cpu" or not torch.cuda.is_available()):
            speed_up_cpu()
        model_config = ModelShape(**config.model.shape.as_dict()).config()
        self.run_directory = RunDirectory(config.run_dir)
        if rank_zero_only.rank != 0:
            return  # rank 0 sends the trainer the checkpoint to continue from
        self.run_directory.acquire()
        self.selection = self.run_directory.choose_checkpoint()
        if self.selection.folder is not None:
            refuse_structural_change(read_config(self.selection.folder), config_json(model_config))
        elif config.stage_from is not None:
            self.stage = stage_folder(config.stage_from, self.run_directory.path)
            refuse_other_model(str(self.stage), read_config(self.stage), config_json(model_config))
        if config.max_tokens is None:
            self._end_if_finished(config.trainer.max_steps)

    def _end_if_finished(self, max_steps: int) -> None:
        if self.selection.step < max_steps:
            return
        print(
            f"{self.run_directory.path} is finished: its newest checkpoint is at step {self.selection.step} of"
            f" {max_steps}; nothing to do"
        )
        if not other_ranks_wait():
            raise SystemExit(0)
        self.finished = True

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config[str(self.subcommand)]
        clock = StepClock()
        self.signals = StopSignals(self.model.guard.requests)
        refuse_callbacks(_as_list(self._get(self.config_init, "trainer").callbacks))
        if config.trainer.max_time is not None:
            self.time_limit = TimeLimit(config.trainer.max_time)
        callbacks = [
            TokenizerCopy(self.run_directory),
            RandomState(),
            self.signals,
            MetricsLog(self.run_directory.path, clock),
            StepCheckpoint(
                self.run_directory.checkpoints,
                config.checkpoint_every,
                config.checkpoint_keep,
                config.checkpoint_failure,
                clock,
                config.checkpoint_keep_every,
                config.checkpoint_keep_best,
            ),
            *_as_list(self.time_limit),
        ]
        self.trainer_defaults["callbacks"] = callbacks
        self.model.compiles = config.compile
        io = StageCheckpointIO(self.run_directory.checkpoints)
        plugins = [*_as_list(config.trainer.plugins), BackgroundCheckpointIO(io) if config.checkpoint_async else io]
        if (environment := launched_environment()) is not None:
            plugins.append(environment)
        options = {
            "logger": make_loggers(config.loggers, self.run_directory.path, self.selection.step, config.wandb_project),
            "plugins": plugins,
            "default_root_dir": config.run_dir,
            "max_time": None,  # Lightning's own timer would add up the time of all starts
            **kwargs,
        }
        if isinstance(name := config.trainer.strategy, str) and name != "auto":
            options["strategy"] = by_name(name)
        try:
            trainer: Any = super().instantiate_trainer(**options)
            if type(trainer.strategy) is DDPStrategy:  # the strategy of "auto" for several processes
                trainer = super().instantiate_trainer(**options, strategy=by_name("ddp"))
        except (ValueError, TypeError, MisconfigurationException, ModuleNotFoundError) as error:
            raise ConfigError(f"trainer: {error}") from error
        if trainer.world_size > 1 and not isinstance(trainer.strategy, Together):
            raise ConfigError(
                f"trainer.strategy: {type(trainer.strategy).__name__} does not support Monet's checkpoints; choose"
                f" from {', '.join(NAMES)}, or a class of monet.training.strategies"
            )
        if config.max_tokens is not None:  # the number of processes is known only now
            max_steps = math.ceil(config.max_tokens / tokens_per_step(trainer, self.datamodule))
            trainer.fit_loop.epoch_loop.max_steps = max_steps
            if rank_zero_only.rank == 0:
                self._end_if_finished(max_steps)
        warn_of_rounded_updates(trainer)
        if config.compile:
            refuse_compiled_partitions(trainer)
        trainer.finished = self.finished
        return trainer

    def fit(self, model: MonetLightningModule, datamodule: MonetDataModule, **kwargs: Any) -> None:
        """Train to max_steps, from the newest valid checkpoint if the run has one."""
        folder = self.selection.folder or self.stage
        if self.selection.folder is not None and not self.finished:
            print(f"continuing {self.run_directory.path} after step {self.selection.step}")
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=folder, **kwargs)
        except RuntimeError as error:
            if model.compiles and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise ConfigError(
                    f"compile = true: torch.compile failed here ({str(error).strip().splitlines()[0]}); install a C++"
                    " compiler, or leave compile out"
                ) from error
            raise
        finally:
            self.signals.restore()
        if self.trainer.is_global_zero:
            print(self._ending())

    def _ending(self) -> str:
        step, all_steps = self.trainer.global_step, self.trainer.max_steps
        if step >= all_steps:
            return f"finished {step} steps; next: monet export --run {self.run_directory.path}"
        reason = "trainer.max_time" if self.time_limit is not None and self.time_limit.reached else "a callback"
        return f"stopped by {reason} after step {step} of {all_steps}; run the same command to continue"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
