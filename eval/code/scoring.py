"""From outcomes of programs to pass@k with intervals over problems, and to changes against the whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monet.eval.bootstrap import Bootstrap, interval, resample_means
from monet.eval.code.generation import TOO_LONG
from monet.eval.code.pass_at_k import pass_at_k
from monet.eval.code.problems import Problem
from monet.eval.code.results import Figure, LanguageScore

NOT_EXECUTED = "not executed"


@dataclass(frozen=True)
class Tally:
    """One language under one condition.

    Args:
        problems: that were asked for.
        passes: by problem, how many samples have an outcome and how many of them passed.
        statuses: samples by how they ended.
        unscored: problems or samples without an outcome, by reason.
    """

    problems: int
    passes: dict[str, tuple[int, int]]
    statuses: dict[str, int]
    unscored: dict[str, int]

    def values(self, k: int) -> dict[str, float]:
        """Unbiased pass@k of each problem that has as many outcomes."""
        return {name: pass_at_k(n, c, k) for name, (n, c) in self.passes.items() if n >= k}


def tally(
    problems: Sequence[Problem], completions: Mapping[str, Sequence[str]], statuses: Mapping[str, str] | None
) -> Tally:
    """Count how samples ended.

    Args:
        problems: of one language.
        completions: by problem; those without one did not fit into the model's context.
        statuses: by program; None if no program was run.
    """
    counts: Counter[str] = Counter()
    unscored: Counter[str] = Counter()
    passes: dict[str, tuple[int, int]] = {}
    for problem in problems:
        if problem.name not in completions:
            unscored[f"problems: {TOO_LONG}"] += 1
            continue
        ends = [
            NOT_EXECUTED if statuses is None else statuses[problem.program(text)] for text in completions[problem.name]
        ]
        counts.update(ends)
        known = [end for end in ends if end not in (NOT_EXECUTED, "sandbox error")]
        if len(known) < len(ends):
            unscored[f"samples: {'not executed' if statuses is None else 'could not be run'}"] += len(ends) - len(known)
        if known:
            passes[problem.name] = (len(known), known.count("ok"))
    return Tally(len(problems), passes, dict(counts), dict(unscored))


def score(
    language: str, found: Tally, whole: Tally | None, ks: Sequence[int], bootstrap: Bootstrap, number: int
) -> LanguageScore:
    """pass@k of one language and its change.

    Args:
        language: its name.
        found: under a condition.
        whole: of the model as it is; None if `found` is that.
        ks: the k of pass@k; those with more than a problem's samples have no value.
        bootstrap: how intervals are made; problems are what is drawn again.
        number: of the language, so that languages are drawn independently.
    """
    pass_at: dict[str, Figure | None] = {}
    change: dict[str, Figure | None] = {}
    for k in ks:
        values = found.values(k)
        pass_at[str(k)] = _figure([list(values.values())], bootstrap, [number, k])
        if whole is not None:
            before = whole.values(k)
            common = [name for name in values if name in before]
            rows = [[before[name] for name in common], [values[name] for name in common]]
            change[str(k)] = _figure(rows, bootstrap, [number, k])
    return LanguageScore(
        language=language,
        problems=found.problems,
        scored=len(found.passes),
        samples=sum(n for n, _ in found.passes.values()),
        statuses=found.statuses,
        unscored=found.unscored,
        pass_at=pass_at,
        change=change,
    )


def _figure(rows: Sequence[Sequence[float]], bootstrap: Bootstrap, seeds: Sequence[int]) -> Figure | None:
    """Mean over problems of the last row, less that of the first if there are two, with its interval."""
    values_CU = np.array(rows, dtype=np.float64)
    if values_CU.shape[1] == 0:
        return None
    difference = (lambda mean_C: mean_C[..., -1] - mean_C[..., 0]) if len(rows) > 1 else (lambda mean_C: mean_C[..., 0])
    if values_CU.shape[1] == 1:
        return Figure(float(difference(values_CU[:, 0])), None, None)
    ones_U = np.ones(values_CU.shape[1], dtype=np.int64)
    drawn = resample_means(values_CU, ones_U, bootstrap.resamples, [bootstrap.seed, *seeds])
    low, high = interval(difference(drawn.draws_QC), bootstrap.confidence)
    return Figure(float(difference(drawn.mean_C)), low, high)
