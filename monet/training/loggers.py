"""Loggers beside metrics.jsonl, none of which can stop a run."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from monet.files import atomic_write_text

WANDB_ID = "logs/wandb_id"
log = logging.getLogger("monet.training")


class GuardedLogger(Logger):
    """Hands everything on to a logger until that fails once; from then on it is left out, with one warning.

    Args:
        kind: its name in the settings.
        make: makes the logger; may fail too.
    """

    def __init__(self, kind: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self.kind = kind
        self.inner: Logger | None = None
        self._try(lambda: setattr(self, "inner", make()))

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever it is: metrics.jsonl has the numbers
            self.inner = None
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("the logger %s failed and is left out from here on: %s", self.kind, reason)

    def _hand_on(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.inner is not None:
            return self._try(lambda: getattr(self.inner, method)(*args, **kwargs))

    @property
    @override
    def name(self) -> str | None:
        return self.kind

    @property
    @override
    def version(self) -> int | str | None:
        return None if self.inner is None else self._try(lambda: getattr(self.inner, "version", None))

    @property
    def experiment(self) -> Any:
        """The logger's own object; asking for it is what opens files and connections."""
        return None if self.inner is None else self._try(lambda: getattr(self.inner, "experiment", None))

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._hand_on("log_metrics", metrics, step)

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._hand_on("log_hyperparams", params, *args, **kwargs)

    @override
    def save(self) -> None:
        self._hand_on("save")

    @override
    def finalize(self, status: str) -> None:
        self._hand_on("finalize", status)


def make_loggers(kinds: list[str], run_dir: Path, first_step: int, wandb_project: str) -> list[Logger]:
    """The loggers of a start.

    Args:
        kinds: csv, tensorboard, wandb.
        run_dir: the run's folder; they write in its folder logs.
        first_step: finished optimiser steps of the checkpoint that the run continues from. Each continuation has a CSV
            file of its own, because the CSV logger deletes what it finds.
        wandb_project: project name there.
    """
    folder, version = run_dir / "logs", f"from-step-{first_step:08d}"
    # TensorBoard drops the steps from purge_step on; what was logged at the checkpoint's own step stays
    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="csv", version=version),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version="", purge_step=first_step + 1),
        "wandb": lambda: _wandb(wandb_project, run_dir),
    }
    return [GuardedLogger(kind, makers[kind]) for kind in kinds]


def _wandb(project: str, run_dir: Path) -> Logger:
    """Every start of a run continues one run of wandb, whose id is kept in the run's folder."""
    from lightning.pytorch.loggers import WandbLogger

    path, run_id = run_dir / WANDB_ID, None
    if rank_zero_only.rank == 0:  # the other ranks open nothing
        if not path.is_file():
            atomic_write_text(path, uuid.uuid4().hex + "\n")
        run_id = path.read_text(encoding="utf-8").strip()
    return WandbLogger(
        project=project, save_dir=run_dir / "logs", name=run_dir.resolve().name, id=run_id, resume="allow"
    )
