"""The `monet lm-eval` command: the command line of lm-evaluation-harness, with the model `monet` registered."""

from __future__ import annotations

import sys
from pathlib import Path

from monet.errors import ConfigError
from monet.extras import install_command

PLUGIN = Path(__file__).with_name("monet.yaml")
_USAGE = """usage: monet lm-eval WORDS...   run lm-eval with these words; it then knows the model `monet`
       monet lm-eval --plugin   print the file that registers the model in lm-eval's own command:
                                lm_eval --model monet --tasks arc_easy,$(monet lm-eval --plugin) ...
model arguments: pretrained=DIR_OR_NAME, mask=FILE, keep=0.0, control=N, control_kind=number|mass|activity,
                 statistics=FILE, and all arguments of the model `hf`
"""


def run(words: list[str]) -> int:
    """Pass a command line to lm-eval.

    Args:
        words: command line of lm-eval, e.g. `run --model monet --model_args pretrained=DIR,mask=FILE --tasks arc_easy`.

    Returns:
        lm-eval's exit code.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    if words == ["--plugin"]:
        print(PLUGIN)
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
    try:
        from lm_eval.__main__ import cli_evaluate

        import monet.eval.suites.questions.model  # noqa: F401 - registers the model
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is missing, but lm-eval needs it. Install it: {install_command('eval')}"
        ) from None
    before = sys.argv
    sys.argv = ["lm-eval", *words]
    try:
        cli_evaluate()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return 0
