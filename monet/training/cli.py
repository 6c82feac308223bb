"""The entry point of train.py: training or validation, with one-line errors."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import SIGTERMException

from monet.errors import MonetError, recognised
from monet.terminal import clean, clean_warnings
from monet.training.lightning_cli import MonetCLI


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line of train.py and return the exit code (see docs/training.md).

    Args:
        argv: words after the program's name; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" not in words:
        # Lightning reports at length which devices it did not find
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    clean_warnings()
    try:
        if words[:1] == ["validate"]:
            from monet.training.validate import run_command

            run_command(words[1:])
        else:
            MonetCLI(None if argv is None else words)
    except (MonetError, OSError, RuntimeError, MemoryError) as error:
        known = recognised(error)
        if known is None and not isinstance(error, OSError):
            raise  # an internal error gets its traceback
        if "--debug" in words:
            traceback.print_exc()
        else:
            print(f"train.py: error: {clean(' '.join(str(known or error).split()))}", file=sys.stderr)
        return 1 if known is None else known.exit_code
    except SIGTERMException:
        return 143
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning exits with 1 after an interrupt
            return 130
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
