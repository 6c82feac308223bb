"""A browser for tests of pages.

Needs `pip install playwright` and a Chromium: playwright's own (`playwright install chromium`), one on the PATH, or the
one that MONET_BROWSER names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from monet.doctor.machine import BROWSERS


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A playwright browser; without one, the test is skipped and says why."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    path = os.environ.get("MONET_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as driver:
        if path is None and not os.path.exists(driver.chromium.executable_path):
            pytest.skip("no browser: playwright install chromium, or name one in MONET_BROWSER")
        found = driver.chromium.launch(executable_path=path)
        yield found
        found.close()
