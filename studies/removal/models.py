"""Work with several models of one study: refusal of equal ones, and the time of each part."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from monet.errors import ConfigError
from studies.removal.candidates import Candidate


@contextlib.contextmanager
def timed(part: str) -> Iterator[None]:
    """Report the duration of a part, in minutes of CPU time of all threads."""
    started = time.process_time()
    yield
    print(f"{part}: {(time.process_time() - started) / 60:.1f} minutes of CPU time", flush=True)


def check_different(candidates: Sequence[Candidate]) -> None:
    """Refuse models that are given twice, because their spread over seeds would be too small.

    Raises:
        ConfigError: two models are equal or have the same name; the message names both.
    """
    for place, one in enumerate(candidates):
        for other in candidates[:place]:
            if one.fingerprint == other.fingerprint or one.name == other.name:
                raise ConfigError(
                    f"{other.folder} and {one.folder} hold the same weights or have the same name ({one.name}); give "
                    "models that were trained with different seeds, each exported from a run with another name"
                )
