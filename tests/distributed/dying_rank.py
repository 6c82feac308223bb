"""train.py, in which rank 1 is killed.

DIES=save: while it writes its part of the checkpoint after step 6. DIES=step: before the backward pass of step 5.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from monet.training import tensor_files
from monet.training.cli import main
from monet.training.module import MonetLightningModule

write = tensor_files.write


def die(folder: Path, *args: Any) -> None:
    write(folder, *args)
    if os.environ["RANK"] == "1" and "step-00000006" in folder.name:
        os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(module: MonetLightningModule, loss: Tensor) -> None:
    if os.environ["RANK"] == "1" and module.trainer.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if os.environ["DIES"] == "save":
        tensor_files.write = die
    else:
        MonetLightningModule.on_before_backward = die_in_step
    sys.exit(main())
