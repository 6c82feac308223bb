"""train.py, in which rank 1 is killed while it writes its part of the checkpoint after step 6."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from monet.training import tensor_files
from monet.training.cli import main

write = tensor_files.write


def die(folder: Path, *args: Any) -> None:
    write(folder, *args)
    if os.environ["RANK"] == "1" and "step-00000006" in folder.name:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    tensor_files.write = die
    sys.exit(main())
