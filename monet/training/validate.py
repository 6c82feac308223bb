"""`train.py validate`: the validation loss of a run's checkpoint on any prepared data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from monet.cpu import speed_up_cpu
from monet.data.loading.datamodule import MonetDataModule
from monet.errors import ConfigError
from monet.files import atomic_write_json
from monet.training.checkpoints.checkpoint import chosen_checkpoint, read_config, read_entry, read_weights, step_of
from monet.training.configs import read_training_config
from monet.training.language_models import config_json, refuse_other_tokenizer
from monet.training.metrics import validation_line
from monet.training.module import MonetLightningModule
from monet.training.settings import ModelShape, refuse_structural_change
from monet.training.teacher import TeacherSettings, refuse_other_teacher, teacher_settings
from monet.training.weights import copy_strictly, released_tensors


def validate(
    run: Path,
    data: Path,
    checkpoint: Path | None = None,
    seq_len: int | None = None,
    batch_size: int | None = None,
    max_val_windows: int | None = None,
    all_windows: bool = False,
    accelerator: str = "auto",
    teacher: str | None = None,
    json: Path | None = None,
) -> None:
    """Validate a checkpoint of a run on the validation split of prepared data, as the run itself would.

    Settings that are not given come from the run's config.yaml. One process does the work. The run does not change.

    Args:
        run: the run's folder.
        data: folder of prepared data with the same tokenizer as the run; domains may differ from the run's.
        checkpoint: one of the run's checkpoint folders; by default the newest valid one.
        seq_len: tokens in a window.
        batch_size: windows in a batch.
        max_val_windows: maximum number of windows of each domain.
        all_windows: use all windows of each domain.
        accelerator: cpu, gpu, or auto, which uses a GPU if there is one.
        teacher: folder of the run's teacher, if it is no longer where the run read it; none measures no divergence.
        json: also write the losses to this file.
    """
    folder = chosen_checkpoint(run, None) if checkpoint is None else chosen_checkpoint(None, checkpoint)
    settings = read_training_config([run / "config.yaml"])
    if all_windows and max_val_windows is not None:
        raise ConfigError(f"max_val_windows = {max_val_windows} and all_windows = True: give only one of them")
    if settings.cpu_threads is not None:
        torch.set_num_threads(settings.cpu_threads)
    if settings.fast_cpu and (accelerator == "cpu" or not torch.cuda.is_available()):
        speed_up_cpu()
    given = settings.data
    windows = given.max_val_windows if max_val_windows is None else max_val_windows
    datamodule = MonetDataModule(
        str(data),
        seq_len=given.seq_len if seq_len is None else seq_len,
        batch_size=given.batch_size if batch_size is None else batch_size,
        max_val_windows=None if all_windows else windows,
        document_mask=given.document_mask,
        num_workers=given.num_workers,
        full_check=given.full_check,
        loader_timeout=given.loader_timeout,
    )
    refuse_other_tokenizer(str(folder), datamodule.tokenizer_dir, "run")
    module = MonetLightningModule(
        ModelShape(**settings.model.shape.as_dict()),
        teacher=_teacher(settings, teacher),
        attention=settings.model.attention,
    )
    refuse_structural_change(read_config(folder), config_json(module.model.config))
    copy_strictly(read_weights(folder), released_tensors(module.model), f"checkpoint {folder}")
    precision: Any = settings.trainer.precision
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        callbacks=_SameTeacher((read_entry(folder, "monet") or {}).get("teacher")),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=settings.trainer.deterministic,
    )
    trainer.validate(module, datamodule=datamodule, verbose=False)
    assert module.validation_result is not None
    print(validation_line(step_of(folder), module.validation_result), flush=True)
    if json is not None:
        entry = {"step": step_of(folder), "checkpoint": str(folder), "data": str(data)}
        atomic_write_json(json, {**entry, "data_fingerprint": datamodule.fingerprint, **module.validation_result})


class _SameTeacher(Callback):
    """Refuses a teacher with other weights than the checkpoint's, before the work begins."""

    def __init__(self, stored: str | None) -> None:
        self.stored = stored

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if pl_module.teacher is not None:
            refuse_other_teacher(self.stored, pl_module.teacher)


def _teacher(settings: Any, folder: str | None) -> TeacherSettings | None:
    own = teacher_settings(settings)
    if folder is None or (own is None and folder == "none"):
        return own
    if own is None:
        raise ConfigError(f"teacher = {folder}: the run has no teacher; leave it out")
    return None if folder == "none" else replace(own, model=folder)


def run_command(words: list[str]) -> None:
    """Parse the words after `train.py validate` and run the validation."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="train.py validate")
    parser.add_function_arguments(validate, as_positional=False)
    parser.add_argument("--debug", action="store_true", help="Show the whole traceback of an error.")
    arguments = parser.instantiate(parser.parse_args(words)).as_dict()
    arguments.pop("debug")
    validate(**arguments)
