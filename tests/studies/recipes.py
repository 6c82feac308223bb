"""What a target of the Makefile would run."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def recipe(target: str, *variables: str) -> str:
    """Commands of `make TARGET VARIABLES`, which are printed and not run.

    A `make` that runs this test, for example `make test`, passes its flags and its depth on; they are left out.
    """
    line = ["make", "--no-print-directory", "--dry-run", target, *variables]
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
