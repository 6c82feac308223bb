"""Loggers in addition to metrics.jsonl; none of them can stop a run."""

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
    """Forwards calls to a logger until one call fails; then warns once and ignores the logger.

    Args:
        kind: the logger's name in the settings.
        make: creates the logger; may also fail.
    """

    def __init__(self, kind: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self.kind = kind
        self.inner: Logger | None = None
        self._try(lambda: setattr(self, "inner", make()))

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # any error: metrics.jsonl has the numbers
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
        """The logger's own object; accessing it opens files and connections."""
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
    """Return the loggers of a start.

    Args:
        kinds: csv, tensorboard, wandb.
        run_dir: the run's folder; the loggers write to its folder logs.
        first_step: step of the checkpoint from which the run continues. Each continuation has a separate CSV file,
            because the CSV logger deletes existing files.
        wandb_project: project name in wandb.
    """
    folder, version = run_dir / "logs", f"from-step-{first_step:08d}"
    # TensorBoard drops the steps from purge_step on; entries of the checkpoint's own step stay
    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, name="csv", version=version),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version="", purge_step=first_step + 1),
        "wandb": lambda: _wandb(wandb_project, run_dir),
    }
    return [GuardedLogger(kind, makers[kind]) for kind in kinds]


def _wandb(project: str, run_dir: Path) -> Logger:
    """Return one wandb id for all starts of a run, kept in the run's folder."""
    from lightning.pytorch.loggers import WandbLogger

    path, run_id = run_dir / WANDB_ID, None
    if rank_zero_only.rank == 0:  # other ranks do not open loggers
        if not path.is_file():
            atomic_write_text(path, uuid.uuid4().hex + "\n")
        run_id = path.read_text(encoding="utf-8").strip()
    return WandbLogger(
        project=project, save_dir=run_dir / "logs", name=run_dir.resolve().name, id=run_id, resume="allow"
    )
