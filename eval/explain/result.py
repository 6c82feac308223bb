"""The result of a scoring run: means over the units with intervals, each next to its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from monet.eval.core.bootstrap import Bootstrap, few
from monet.eval.core.estimate import Estimate
from monet.eval.core.paired import paired
from monet.eval.core.results import Result
from monet.eval.explain.records import Score


@dataclass(frozen=True)
class ScoreResult(Result):
    """Means over the scored units. The intervals resample units.

    Attributes:
        name: name of the file of lines.
        scorer, judge: see `Score`.
        explainer: whose explanations; "" for a scorer that needs none.
        units: scored units; `skipped` had too few contexts.
        score, permuted, empty: mean scores of the own, a permuted and an empty explanation.
        gain: mean of score minus permuted, unit by unit.
        precision: mean precision at each unit's true rate.
        chance: what guessing scores.
        items, failed: judged contexts or sets, and answers that were missing or could not be read.
        provenance: settings of the run.
    """

    FORMAT: ClassVar[str] = "monet-scores/1"
    COMMAND: ClassVar[str] = "monet score"

    name: str
    scorer: str
    judge: str
    explainer: str
    units: int
    skipped: int
    score: Estimate | None
    permuted: Estimate | None
    empty: Estimate | None
    gain: Estimate | None
    precision: Estimate | None
    chance: float
    items: int
    failed: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The result in words."""
        if self.score is None:
            return f"{self.name}: no unit has enough contexts to be scored ({self.skipped} skipped)"
        shown = [f"score {words(self.score)}"]
        shown += [f"permuted {words(self.permuted)}"] if self.permuted is not None else []
        shown += [f"empty {words(self.empty)}"] if self.empty is not None else []
        return f"{self.name}: {', '.join(shown)} (chance {self.chance:.2f}; {self.units} units, {self.skipped} skipped)"

    def lines(self) -> list[str]:
        """What the command prints."""
        found = [self.sentence]
        if self.gain is not None:
            found.append(f"score minus permuted, unit by unit: {words(self.gain)}")
        if self.precision is not None:
            found.append(f"precision at the true rate of each unit: {words(self.precision)}")
        found.append(f"answers: {self.items:,}, failed (counted as wrong): {self.failed:,}")
        caution = few({"the list": self.units}, "unit")
        return found + ([caution] if caution else [])


def words(estimate: Estimate) -> str:
    """For example 0.812 [0.790, 0.833]."""
    ends = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{ends}"


def result_of(name: str, lines: Sequence[Score], bootstrap: Bootstrap, provenance: dict[str, Any]) -> ScoreResult:
    """Means over the lines of a run."""
    scored = [line for line in lines if line.score is not None]
    columns = {
        "permuted": [line.control_permuted for line in scored],
        "score": [line.score for line in scored],
        "empty": [line.control_empty for line in scored],
        "precision": [line.precision for line in scored],
    }
    table = np.array([[np.nan if value is None else value for value in column] for column in columns.values()])
    found = paired(table[:, None, :], bootstrap, [bootstrap.seed, 2]) if scored else None
    own: dict[str, Estimate | None] = dict.fromkeys(columns)
    gain = None
    if found is not None:
        own |= {name: found.own[n][0].estimate(bootstrap) for n, name in enumerate(columns) if n in found.own}
        gain = found.change[1][0].estimate(bootstrap) if 1 in found.change else None
    first = lines[0]
    explainer = next((line.explainer for line in scored if line.explainer), "")
    return ScoreResult(
        name, first.scorer, first.judge, explainer, len(scored), len(lines) - len(scored), own["score"],
        own["permuted"], own["empty"], gain, own["precision"], first.chance if not scored else scored[0].chance,
        sum(line.n for line in scored), sum(line.failed for line in scored), provenance,
    )  # fmt: skip
