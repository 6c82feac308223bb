"""Computes pass@k with intervals over problems, changes against the unmasked model, and verdicts.

Dims: C conditions, U problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import Chance, chances, reasons_against
from monet.eval.core.conditions import Condition
from monet.eval.core.estimate import ZERO, Draws, mean_of, one_of
from monet.eval.core.intervention import Intervention
from monet.eval.core.paired import Paired, paired
from monet.eval.suites.code.generation import TOO_LONG
from monet.eval.suites.code.pass_at_k import pass_at_k
from monet.eval.suites.code.problems import Problem, language_of
from monet.eval.suites.code.results import ConditionScores, LanguageScore, LanguageVerdict

NOT_EXECUTED = "not executed"


@dataclass(frozen=True)
class Tally:
    """Counts of one language under one condition.

    Args:
        problems: number of requested problems.
        passes: for each problem, the number of samples with an outcome, and how many of them passed.
        statuses: number of samples by how they ended.
        unscored: number of problems or samples without an outcome, by reason.
    """

    problems: int
    passes: dict[str, tuple[int, int]]
    statuses: dict[str, int]
    unscored: dict[str, int]

    def values(self, k: int) -> dict[str, float]:
        """Unbiased pass@k of each problem that has at least k outcomes."""
        return {name: pass_at_k(n, c, k) for name, (n, c) in self.passes.items() if n >= k}


def tally(
    problems: Sequence[Problem], completions: Mapping[str, Sequence[str]], statuses: Mapping[str, str] | None
) -> Tally:
    """Count the ways in which samples ended.

    Args:
        problems: problems of one language.
        completions: completions by problem; a problem without completions did not fit into the model's context.
        statuses: statuses by program; None if no program was run.
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


@dataclass(frozen=True)
class Scored:
    """pass@k of one language under all conditions that it was measured under, by the conditions' names.

    Args:
        language: name of the language.
        tallies: tally of each condition; the unmasked model first.
        at: means and changes of the conditions in that order, by k.
    """

    language: str
    tallies: Mapping[str, Tally]
    at: Mapping[int, Paired]

    def change(self, condition: str, k: int) -> Draws | None:
        """Change of pass@k against the unmasked model; None if no problem has a value under both."""
        if condition not in self.tallies:
            return None
        found = self.at[k].change.get(list(self.tallies).index(condition))
        return None if found is None else found[0]

    def row(self, condition: str, bootstrap: Bootstrap) -> LanguageScore:
        """The language under one condition."""
        number, found = list(self.tallies).index(condition), self.tallies[condition]
        own = {k: means.own.get(number) for k, means in self.at.items()}
        changes = {k: self.change(condition, k) for k in self.at} if number else {}
        return LanguageScore(
            language=self.language,
            problems=found.problems,
            scored=len(found.passes),
            samples=sum(n for n, _ in found.passes.values()),
            statuses=found.statuses,
            unscored=found.unscored,
            pass_at={str(k): None if one is None else one[0].estimate(bootstrap) for k, one in own.items()},
            change={str(k): None if one is None else one.estimate(bootstrap) for k, one in changes.items()},
        )


def score(language: str, tallies: Mapping[str, Tally], ks: Sequence[int], bootstrap: Bootstrap, number: int) -> Scored:
    """Compute pass@k of one language and its changes.

    Args:
        language: name of the language.
        tallies: tallies by name of the condition, the unmasked model first.
        ks: the values of k in pass@k; a problem with fewer samples has no value.
        bootstrap: settings of the bootstrap, which resamples problems.
        number: number of the language, so that languages are drawn independently.
    """
    at = {}
    for k in ks:
        values = [found.values(k) for found in tallies.values()]
        names = list(dict.fromkeys(name for found in values for name in found))
        values_CU = np.array([[found.get(name, np.nan) for name in names] for found in values])
        at[k] = paired(values_CU[:, None], bootstrap, [bootstrap.seed, number, k])
    return Scored(language, tallies, at)


def condition_scores(
    asked: Sequence[Condition], scored: Mapping[str, Scored], bootstrap: Bootstrap
) -> list[ConditionScores]:
    """Scores of every condition, with the languages that were measured under it."""
    return [
        ConditionScores(
            name=one.name,
            label=one.label,
            language=None if one.label is None else language_of(one.label),
            control=one.control,
            scores=[found.row(one.name, bootstrap) for found in scored.values() if one.name in found.tallies],
        )
        for one in asked
    ]


def judged_k(scored: Mapping[str, Scored], ks: Sequence[int]) -> int | None:
    """The largest k for which the unmasked model has a value in any language."""
    return max((k for k in ks if any(0 in found.at[k].own for found in scored.values())), default=None)


def verdicts(
    masks: Mapping[str, Intervention],
    asked: Sequence[Condition],
    scored: Mapping[str, Scored],
    k: int | None,
    bootstrap: Bootstrap,
) -> list[LanguageVerdict]:
    """One verdict per mask of a scored language.

    Args:
        masks: masks by label.
        asked: the conditions.
        scored: scores by language.
        k: the k of pass@k; None gives no verdict.
        bootstrap: settings of the intervals.
    """
    # By label: changes by language under the mask, and changes in its own language under its controls.
    changes: dict[str, dict[str, Draws]] = {}
    controls: dict[str, list[Draws]] = {}
    for label, mask in masks.items():
        language = language_of(label)
        if k is None or language is None or language not in scored:
            continue
        found = {name: of.change(label, k) for name, of in scored.items()} if mask.num_removed else {}
        if mask.num_removed and found[language] is None:
            continue
        changes[label] = {name: one for name, one in found.items() if one is not None}
        beside = [one.name for one in asked if one.label == label and one.control is not None]
        random = (scored[language].change(name, k) for name in beside)
        controls[label] = [one for one in random if one is not None]
    beside_chance = chances(
        {label: -changes[label][str(language_of(label))].value for label, found in controls.items() if found},
        {label: [-one.value for one in found] for label, found in controls.items() if found},
    )
    return [
        _verdict(label, masks[label], found, controls[label], beside_chance.get(label), bootstrap)
        for label, found in changes.items()
    ]


def _verdict(
    label: str,
    mask: Intervention,
    changes: Mapping[str, Draws],
    controls: Sequence[Draws],
    chance: Chance | None,
    bootstrap: Bootstrap,
) -> LanguageVerdict:
    """Judge one mask; a mask without changes removes nothing."""
    language = str(language_of(label))
    target = changes[language].estimate(bootstrap) if changes else ZERO
    others = {name: one for name, one in changes.items() if name != language}
    worst = min(others, key=lambda name: others[name].value, default="")
    lost = {name: -one.value for name, one in others.items()}
    reasons = reasons_against(mask.num_removed, -target.value, lost, chance, mask.unit)
    if changes and not others:
        reasons.append("no other language was evaluated")
    return LanguageVerdict(
        name=label,
        language=language,
        target=target,
        others_max=others[worst].value if worst else None,
        others_max_name=worst,
        others_mean=mean_of(list(others.values())).estimate(bootstrap) if others else None,
        random=one_of(controls, bootstrap).estimate(bootstrap) if controls else None,
        random_per_control=[one.value for one in controls],
        controls=chance.controls if chance else 0,
        p=chance.p if chance else 1.0,
        q=chance.q if chance else 1.0,
        passes=not reasons,
        reason="; ".join(reasons),
    )
