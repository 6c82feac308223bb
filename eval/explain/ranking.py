"""Experts worth seeing, and experts that no baseline explains: chosen by a rule from scores, not by hand.

An expert's merit is the largest of the named scores. The best have the largest merit; of equal ones, those with more
firings come first. At most `SAME` of them have the same best label. The worst have the smallest merit; of equal ones,
those with a larger entropy over labels come first. A part of such extremes is chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monet.errors import ConfigError
from monet.eval.explain.records import SCORES, Score, check_name, read_lines
from monet.eval.index.index import Index
from monet.eval.index.units import Unit
from monet.terminal import clean

SAME = 2
_TOKENS = 5


@dataclass(frozen=True)
class Ranked:
    """A scored unit.

    Attributes:
        unit: the unit.
        row: its row of the table of experts.
        scores: its lines, in the order of the named scores.
        merit: largest score among them.
    """

    unit: Unit
    row: dict[str, Any]
    scores: list[Score]
    merit: float


def ranked(index: Index, names: Sequence[str]) -> list[Ranked]:
    """The units that all named scores have, those of the largest merit first.

    Args:
        index: the index.
        names: names of scores, such as tokens-detection.

    Raises:
        ConfigError: a name has no scores, or no unit has all of them.
        CheckpointError: a file of scores is damaged.
    """
    files = []
    for name in names:
        path = index.folder / SCORES / f"{check_name(name)}.jsonl"
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; make it with `monet score`")
        files.append({(line.group, line.unit): line for line in read_lines(path, Score) if line.score is not None})
    common = sorted(set.intersection(*map(set, files))) if files else []
    if not common:
        raise ConfigError("no unit has all of these scores; name other --scores")
    found = []
    for key in common:
        unit = index.units.unit(*key)
        lines = [file[key] for file in files]
        merit = max(line.score for line in lines if line.score is not None)
        found.append(Ranked(unit, index.row(unit), lines, merit))
    return sorted(found, key=lambda one: (-one.merit, -one.row["count"]))


def best(found: Sequence[Ranked], count: int) -> list[Ranked]:
    """Those of the largest merit, at most `SAME` with the same best label."""
    taken: Counter[str] = Counter()
    chosen = []
    for one in found:
        if len(chosen) < count and taken[one.row["best_label"]] < SAME:
            taken[one.row["best_label"]] += 1
            chosen.append(one)
    return chosen


def worst(found: Sequence[Ranked], count: int) -> list[Ranked]:
    """Those of the smallest merit; of equal ones, those with a larger entropy over labels first."""
    return sorted(found, key=lambda one: (one.merit, -(one.row["label_entropy"] or 0.0)))[:count]


def markdown(chosen: Sequence[Ranked], names: Sequence[str]) -> list[str]:
    """A table in Markdown."""
    header = ["expert", "i, j", "firings", "best label (share)", "most frequent tokens", *names]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for one in chosen:
        row, unit = one.row, one.unit
        keys = ", ".join("-" if key is None else str(key) for key in (unit.i, unit.j))
        tokens = " ".join(_code(text) for text in row["token_texts"][:_TOKENS])
        label = f"{clean(row['best_label'])} ({row['label_share']:.0%})"
        scores = [f"{_number(line.score)} v {_number(line.control_permuted)}" for line in one.scores]
        cells = [unit.name, keys, f"{row['count']:,}", label, tokens, *scores]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _code(text: str) -> str:
    """A token as code: spaces are low lines, and line breaks have their names."""
    shown = clean(text).replace("\n", "\\n").replace("\t", "\\t").replace(" ", "_")
    shown = shown.replace("|", "\\|").replace("`", "'")
    return f"`{shown}`" if shown else "-"


def run(
    index: Path,
    scores: list[str] = [],  # noqa: B006 - shown in --help, never changed
    count: int = 10,
) -> None:
    """Show the experts that the baselines explain best, and those that they do not explain, as Markdown.

    The merit of an expert is the largest of the named scores. The list of the best has at most two experts with the
    same best label. Cells of scores are: own score v permuted explanation.

    Args:
        index: folder of `monet index`.
        scores: names of scores of the same experts, such as tokens-detection label-detection.
        count: experts in each list.

    Raises:
        CheckpointError: the index or a file of scores is damaged.
        ConfigError: no name is given or one has no scores, no expert has all of them, or count is below 1.
    """
    if not scores:
        raise ConfigError("name the scores, such as --scores tokens-detection label-detection")
    if count < 1:
        raise ConfigError(f"count {count} must be at least 1")
    found = ranked(Index(index), scores)
    print(f"The {count} of the largest merit, of {len(found)}:", "", *markdown(best(found, count), scores), sep="\n")
    print("", f"The {count} of the smallest merit:", "", *markdown(worst(found, count), scores), sep="\n")
