"""Loggers beside metrics.jsonl, none of which can stop a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from typing_extensions import override

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


def make_loggers(kinds: list[str], folder: Path, first_step: int, wandb_project: str) -> list[Logger]:
    """The loggers of a start.

    Args:
        kinds: csv, tensorboard, wandb.
        folder: where they write.
        first_step: the step the run continues from; each continuation has a CSV file of its own, because the CSV
            logger deletes what it finds.
        wandb_project: project name there.
    """
    version = f"from-step-{first_step:08d}"
    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="csv", version=version),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version="", purge_step=first_step),
        "wandb": lambda: _wandb(wandb_project, folder),
    }
    return [GuardedLogger(kind, makers[kind]) for kind in kinds]


def _wandb(project: str, folder: Path) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project=project, save_dir=folder)
