"""Reads train.py's configuration files as train.py does, without building anything."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from monet.errors import ConfigError
from monet.training.lightning_cli import MonetCLI


class _Parsed(MonetCLI):
    """A LightningCLI that stops after parsing."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def read_training_config(files: Sequence[Path], words: Sequence[str] = ()) -> Any:
    """Return the settings that `train.py fit` would use, including defaults.

    Args:
        files: files as given with --config; later files take precedence.
        words: further words of the command line, such as --data.batch_size=4.
    Returns:
        jsonargparse's namespace, with `model.shape.hidden_size` and so on.
    Raises:
        ConfigError: a file is missing, or train.py would refuse it.
    """
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ConfigError(f"config {missing[0]}: no such file")
    arguments = ["fit", "--run_dir", "unused", *words]
    for path in files:
        arguments += ["--config", str(path)]
    said, own_words = io.StringIO(), sys.argv
    try:
        sys.argv = own_words[:1]  # LightningCLI would parse our words as its own
        with warnings.catch_warnings(), redirect_stderr(said):
            warnings.simplefilter("ignore")
            return _Parsed(arguments).config.fit
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if "error:" in line] or ["it cannot be read"]
        problem = lines[-1].partition("error: ")[2].replace("fit.", "")
        raise ConfigError(f"config {', '.join(map(str, files))}: {problem}") from None
    finally:
        sys.argv = own_words
