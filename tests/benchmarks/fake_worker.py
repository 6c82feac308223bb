"""Stand-in for the GPU suite's worker: the name of a section says what happens to it. It imports nothing slow."""

from __future__ import annotations

import os
import time


def work(connection, names, device, is_quick):
    connection.send({"environment": {"device": "toy GPU/1", "date": "2026-01-02T03:04:05+00:00"}})
    for name in names:
        connection.send({"section": name, "start": True})
        connection.send({"section": name, "row": {"figure": float("inf"), "targets": {"G1": 1.2, "G8 HD": 30.0}}})
        if name == "crashes":
            os._exit(3)
        if name == "hangs":
            time.sleep(600)
        error = "ValueError: no" if name == "fails" else None
        connection.send({"section": name, "end": True, "error": error, "seconds": 0.1, "clocks": None})
        if name == "loses":
            connection.send({"lost": "illegal access"})
            return


def dies_at_once(connection, names, device, is_quick):
    os._exit(4)
