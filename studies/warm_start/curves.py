"""Reads validations of training runs, and finds when a run first has a loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from monet.errors import ConfigError, DataError
from monet.json_text import parse_json
from monet.training.metrics import METRICS, VALIDATION
from studies.warm_start.results import Arm, Level, Point

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
# Settings in which runs may differ.
_OWN = {"run_dir", "seed_everything", "config"}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the folder of a run of train.py with validations")
    return [parse_json(line, str(path)) for line in path.read_text(encoding="utf-8").splitlines()]


def curve_of(run: Path) -> list[Point]:
    """The validations of a run, in order.

    Raises:
        DataError: the run has no validation, or a loss is not finite.
    """
    tokens = {entry["step"]: entry["tokens_seen"] for entry in _lines(run / METRICS)}
    found = _lines(run / VALIDATION)
    if not found:
        raise DataError(f"{run}: no validation; set trainer.val_check_interval")
    if any(entry["loss"] is None for entry in found):
        raise DataError(f"{run}: a validation loss is not finite")
    return [Point(tokens[entry["step"]], entry["loss"]) for entry in found]


def settings_of(run: Path) -> dict[str, Any]:
    """What a run was configured with, without what may differ between the compared runs."""
    content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    kept = {name: value for name, value in content.items() if name not in _OWN}
    kept["model"] = {name: value for name, value in kept["model"].items() if name != "init_from"}
    kept["data"] = {name: value for name, value in kept["data"].items() if name != "seed"}
    return kept


def check_equal(runs: Sequence[Path]) -> None:
    """Refuse runs that differ in more than their start and seed.

    Raises:
        ConfigError: names the setting and both runs.
    """
    first = settings_of(runs[0])
    for run in runs[1:]:
        other = settings_of(run)
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"{run} and {runs[0]} differ in {name}: {other.get(name)!r} and {first.get(name)!r}; compare runs "
                    "that differ only in model.init_from and their seeds"
                )


def arm_of(name: str, runs: Sequence[Path]) -> Arm:
    """One way to begin, as the mean over runs.

    Raises:
        DataError: the runs validated at other steps.
    """
    curves = [curve_of(run) for run in runs]
    tokens = [[point.tokens for point in curve] for curve in curves]
    if any(one != tokens[0] for one in tokens):
        raise DataError(f"{', '.join(map(str, runs))}: validations at different tokens; finish the runs")
    mean = [Point(at, sum(curve[place].loss for curve in curves) / len(curves)) for place, at in enumerate(tokens[0])]
    return Arm(name, [run.name for run in runs], mean, [curve[-1].loss for curve in curves])


def first_at(curve: Sequence[Point], loss: float) -> tuple[int | None, bool]:
    """Tokens at which a curve is first at or below a loss, linear between validations.

    Returns:
        the tokens, None if it never is; and whether the first validation is below already.
    """
    for place, point in enumerate(curve):
        if point.loss <= loss:
            if place == 0:
                return point.tokens, point.loss < loss
            before = curve[place - 1]
            share = (before.loss - loss) / (before.loss - point.loss)
            return round(before.tokens + share * (point.tokens - before.tokens)), False
    return None, False


def levels(arms: Sequence[Arm]) -> list[Level]:
    """When each arm has the losses that the first arm has after some shares of its tokens."""
    first, found = arms[0].curve, []
    for share in SHARES:
        wanted = share * first[-1].tokens
        point = min(first, key=lambda one: abs(one.tokens - wanted))
        reached = {arm.name: first_at(arm.curve, point.loss) for arm in arms}
        tokens = {name: one for name, (one, _) in reached.items()}
        bounds = [name for name, (_, is_bound) in reached.items() if is_bound]
        found.append(Level(point.loss, point.tokens / first[-1].tokens, tokens, bounds))
    return found
