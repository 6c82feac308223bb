"""What a check found. Every outcome of a check becomes a finding, a crash too."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "warning", "failed", "skipped"]


class Fault(Exception):
    """The check failed. `fix` says what to do; empty takes the check's own fix."""

    def __init__(self, detail: str, fix: str = "") -> None:
        super().__init__(detail)
        self.fix = fix


class Caution(Fault):
    """Something works less well than it could, and everything still computes the right numbers."""


class Skipped(Exception):
    """The check does not apply to this machine; the text is the reason."""


class Check(NamedTuple):
    """One check.

    name: stands in front of its line.
    run: returns what it found in words; raises Fault, Caution or Skipped, and any other exception counts as a fault.
    fix: what to do where a fault brings no fix of its own.
    """

    name: str
    run: Callable[[], str]
    fix: str


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: of the check.
        status: "failed" makes the whole examination fail; "warning" and "skipped" do not.
        seconds: that the check took.
        detail: what was found, in one line.
        fix: what to do about it; empty if nothing is to be done.
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
        """As an object of JSON."""
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
    except Exception as error:  # a broken installation breaks in any way
        status, detail, fix = "failed", f"{type(error).__name__}: {str(error) or _place(error)}", check.fix
    return Finding(check.name, status, time.perf_counter() - start, " ".join(detail.split())[:400], fix)


def _place(error: Exception) -> str:
    """Where an error without a text was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"in {last.name}, {last.filename}:{last.lineno}"
