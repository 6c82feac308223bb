"""The last lines of a command that measures removals."""

from __future__ import annotations

import os
from pathlib import Path

from monet.eval.core.conditions import PART_DONE
from monet.eval.core.results import RESULT_NAME, Result


def announce(result: Result | None, out: str | os.PathLike[str], shows: str = "tables") -> None:
    """Print what was found, and where the result is.

    Args:
        result: the result; None if only a part of the work was done.
        out: folder of the result.
        shows: what `monet report` makes of it.
    """
    if result is None:
        print(PART_DONE)
        return
    print(*result.lines(), sep="\n")
    print(f"result: {Path(out) / RESULT_NAME}; its {shows}: monet report --result {out} --out FOLDER")
