"""Parameters of tests that only the nightly run has."""

from __future__ import annotations

from typing import Any

import pytest


def nightly(*values: Any, id: str | None = None) -> Any:
    """A case that `make test SLOW=1` runs and `.ci/run` leaves out; similar cases run there."""
    return pytest.param(*values, id=id, marks=pytest.mark.nightly)
