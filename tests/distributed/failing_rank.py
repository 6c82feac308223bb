"""train.py, in which rank 1 fails in the way that FAULT names.

save: it is killed while it writes its part of the checkpoint after step 6. step: it is killed before the backward pass
of step 5. disk: its disk is full at the checkpoint after step 3.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from monet.training.checkpoints import tensor_files
from monet.training.cli import main
from monet.training.module import MonetLightningModule

write = tensor_files.write


def fail_in_save(folder: Path, *args: Any) -> None:
    write(folder, *args)
    if os.environ["RANK"] != "1":
        return
    if os.environ["FAULT"] == "save" and "step-00000006" in folder.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["FAULT"] == "disk" and "step-00000003" in folder.name:
        raise OSError(28, "No space left on device")


def die_in_step(module: MonetLightningModule, loss: Tensor) -> None:
    if os.environ["RANK"] == "1" and module.trainer.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    tensor_files.write = fail_in_save
    if os.environ["FAULT"] == "step":
        MonetLightningModule.on_before_backward = die_in_step
    sys.exit(main())
