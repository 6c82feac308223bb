"""Checks and their findings. Every outcome of a check becomes a finding, even a crash."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "warning", "failed", "skipped"]


class Fault(Exception):
    """The check failed. `fix` says what to do; if it is empty, the check's own fix is used."""

    def __init__(self, detail: str, fix: str = "") -> None:
        super().__init__(detail)
        self.fix = fix


class Caution(Fault):
    """A part works less well than it could, but all results are still correct."""


class Skipped(Exception):
    """The check does not apply to this machine; the text is the reason."""


class Check(NamedTuple):
    """One check.

    name: label of the check in the report.
    run: returns its finding as text; raises Fault, Caution or Skipped. Any other exception counts as a fault.
    fix: what to do if a fault has no separate fix.
    """

    name: str
    run: Callable[[], str]
    fix: str


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: the check's name.
        status: "failed" makes the whole examination fail; "warning" and "skipped" do not.
        seconds: duration of the check.
        detail: what was found, in one line.
        fix: how to fix it; empty if nothing needs to be done.
    """

    name: str
    status: Status
    seconds: float
    detail: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether the check did not fail."""
        return self.status != "failed"

    def as_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "name": self.name,
            "ok": self.ok,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "detail": self.detail,
            "fix": self.fix,
        }


def find(check: Check) -> Finding:
    """Run a check."""
    start = time.perf_counter()
    status, fix = "ok", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detail = check.run()
    except Skipped as reason:
        status, detail = "skipped", str(reason)
    except Fault as fault:
        status = "warning" if isinstance(fault, Caution) else "failed"
        detail, fix = str(fault), fault.fix or check.fix
    except Exception as error:  # a broken installation can fail in any way
        status, detail, fix = "failed", f"{type(error).__name__}: {str(error) or _place(error)}", check.fix
    return Finding(check.name, status, time.perf_counter() - start, " ".join(detail.split())[:400], fix)


def _place(error: Exception) -> str:
    """Where an error without a message was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"in {last.name}, {last.filename}:{last.lineno}"
