"""Computes log-odds, accuracies and their changes from outcomes, and one verdict per mask.

A fact is the unit of the bootstrap: its number is the mean over its scored lines, and every draw takes the same facts
for all conditions.

Dims: C conditions, L lines, U facts; M is 2: log-odds and accuracy.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError, DataError
from monet.eval.choices.scoring import Outcome, count_outcomes, likeliest, log_odds
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import chances, p_value, q_values, reasons_against
from monet.eval.core.conditions import Condition
from monet.eval.core.estimate import ZERO, Draws, Estimate, mean_of, one_of
from monet.eval.core.intervention import Intervention, share
from monet.eval.core.paired import Paired, paired
from monet.eval.suites.facts.read import Facts, Question
from monet.eval.suites.facts.results import Change, FactsResult, Removal, Scope


def targets_of(labels: Sequence[str], facts: Facts, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The domain or relation that each mask is judged by.

    Args:
        labels: labels of the masks.
        facts: the facts.
        given: targets by label: a domain, or "domain/relation". A label that is not given has the domain of its name
            as target, or else the relation of its name if only one domain has it, or else none.

    Raises:
        ConfigError: a given label or target does not exist.
    """
    domains = set(facts.of_domain)
    relations = {f"{one.domain}/{one.relation}" for one in facts.questions}
    if strange := [label for label in given or {} if label not in labels]:
        raise ConfigError(f"targets: there is no mask {strange[0]!r}; the masks are {', '.join(labels) or 'none'}")
    found = {}
    for label in labels:
        named = [label] if label in domains else [one for one in relations if one.partition("/")[2] == label]
        target = (given or {}).get(label, named[0] if len(named) == 1 else "")
        if target and target not in domains | relations:
            raise ConfigError(
                f"targets: {target!r} of mask {label!r} is no domain or relation of the facts; choose from "
                f"{', '.join(sorted(domains | relations))}"
            )
        found[label] = target
    return found


@dataclass(frozen=True)
class _Measured:
    """A domain or relation under every condition that it was asked under.

    Args:
        questions: its lines.
        outcomes: their outcomes without a mask.
        facts: number of facts with a score.
        own: log-odds and accuracy without a mask.
        change: changes of both under each label's mask, by label.
        random: changes of the log-odds under the controls, by label; empty where the controls were not asked.
    """

    questions: list[Question]
    outcomes: list[Outcome]
    facts: int
    own: list[Draws]
    change: dict[str, list[Draws]]
    random: dict[str, list[Draws]]


def _by_fact(questions: Sequence[Question], values_CML: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the scored lines of each fact, (C, M, U); facts without a score are left out."""
    numbers: dict[str, int] = {}
    unit_L = np.array([numbers.setdefault(question.fact, len(numbers)) for question in questions])
    scored_L = ~np.isnan(values_CML).any((0, 1))
    unit_L, values_CML = unit_L[scored_L], values_CML[:, :, scored_L]
    lines_U = np.bincount(unit_L, minlength=len(numbers))
    sums_CMU = np.array([[np.bincount(unit_L, row_L, len(numbers)) for row_L in rows] for rows in values_CML])
    return sums_CMU[:, :, lines_U > 0] / lines_U[lines_U > 0]


def _measure(
    name: str,
    questions: list[Question],
    run_under: Sequence[Condition],
    outcomes: Mapping[int, list[Outcome]],
    bootstrap: Bootstrap,
) -> _Measured:
    """Measure one domain or relation; its outcomes by number of the condition, in the order of its questions."""
    values_CML = np.stack([(log_odds(questions, of), likeliest(questions, of)) for of in outcomes.values()])
    metrics_CMU, unmasked = _by_fact(questions, values_CML), outcomes[0]
    if not metrics_CMU.shape[2]:
        reasons, _ = count_outcomes(unmasked)
        raise DataError(f"{name}: no line has a score ({', '.join(reasons)}); remove it, or name another tokenizer")
    found: Paired = paired(metrics_CMU, bootstrap, [bootstrap.seed, zlib.crc32(name.encode())])
    measured = _Measured(questions, unmasked, metrics_CMU.shape[2], found.own[0], {}, {})
    for place, condition in enumerate(run_under[number] for number in outcomes):
        if condition.control is not None:
            measured.random.setdefault(str(condition.label), []).append(found.change[place][0])
        elif condition.label is not None:
            measured.change[condition.label] = found.change[place]
    return measured


def _scope(name: str, found: _Measured, bootstrap: Bootstrap) -> Scope:
    odds, accuracy = (one.estimate(bootstrap) for one in found.own)
    chance = float(np.mean([1 / len(question.options) for question in found.questions]))
    unscored, _ = count_outcomes(found.outcomes)
    return Scope(name, found.facts, len(found.questions), unscored, chance, odds, accuracy)


def _changes(found: Mapping[str, _Measured], label: str, removing: bool, bootstrap: Bootstrap) -> list[Change]:
    """Changes of one mask in all scopes of a level; q is not known yet."""
    if not removing:
        return [Change(ZERO, ZERO, ZERO, None, None) for _ in found]
    changes = []
    for one in found.values():
        odds, accuracy = one.change[label]
        controls = one.random.get(label, [])
        changes.append(
            Change(
                odds.estimate(bootstrap),
                accuracy.estimate(bootstrap),
                one_of(controls, bootstrap).estimate(bootstrap) if controls else None,
                p_value(_loss(odds), [_loss(control) for control in controls]) if controls else None,
                None,
            )
        )
    return changes


def _loss(change: Draws) -> float:
    """The log-odds that are lost, rounded: the last bits of a mean depend on the order of its terms."""
    return round(-change.value, 12)


def _with_q(by_label: Mapping[str, list[Change]]) -> dict[str, list[Change]]:
    """The changes of one level, with q over all that have a p."""
    known = [(label, place) for label, own in by_label.items() for place, one in enumerate(own) if one.p is not None]
    p = [found for label, place in known if (found := by_label[label][place].p) is not None]
    done = {label: list(own) for label, own in by_label.items()}
    for (label, place), q in zip(known, q_values(p), strict=True):
        done[label][place] = dataclasses.replace(done[label][place], q=q)
    return done


def summarise(
    masks: Mapping[str, Intervention],
    targets: Mapping[str, str],
    units: tuple[str, str],
    run_under: Sequence[Condition],
    facts: Facts,
    outcomes: Mapping[str, Mapping[int, list[Outcome]]],
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> FactsResult:
    """Compute scores and changes with intervals, and one verdict per mask.

    Args:
        masks: masks by label.
        targets: domain or relation of each mask, from `targets_of`.
        units: the unit that they remove, and the group that units are counted by.
        run_under: all conditions, the unmasked model first.
        facts: the facts that were asked.
        outcomes: outcomes by "domain/relation" and number of the condition; the first condition is always present.
        bootstrap: settings of the intervals.
        provenance: provenance of the result.

    Raises:
        DataError: no line of a domain or relation has a score.
    """
    domains: dict[str, _Measured] = {}
    relations: dict[str, _Measured] = {}
    for domain, questions in facts.of_domain.items():
        by_relation: dict[str, list[Question]] = {}
        for question in questions:
            by_relation.setdefault(f"{domain}/{question.relation}", []).append(question)
        for name, own in by_relation.items():
            relations[name] = _measure(name, own, run_under, outcomes[name], bootstrap)
        # A condition counts for the domain if it was asked about all its relations.
        numbers = [
            number
            for number in outcomes[next(iter(by_relation))]
            if all(number in outcomes[name] for name in by_relation)
        ]
        whole = {number: [one for name in by_relation for one in outcomes[name][number]] for number in numbers}
        domains[domain] = _measure(
            domain, [one for own in by_relation.values() for one in own], run_under, whole, bootstrap
        )
    removing = {label: bool(mask.num_removed) for label, mask in masks.items()}
    of_domains, of_relations = (
        _with_q({label: _changes(level, label, removing[label], bootstrap) for label in masks})
        for level in (domains, relations)
    )
    both = {**domains, **relations}
    judged = [label for label in masks if removing[label] and targets[label]]
    beside_chance = chances(
        {label: _loss(both[targets[label]].change[label][0]) for label in judged},
        {label: [_loss(one) for one in both[targets[label]].random.get(label, [])] for label in judged},
    )

    def removal(label: str) -> Removal:
        mask, target = masks[label], targets[label]
        level = relations if "/" in target else domains
        others = {name: one.change[label][0] for name, one in level.items() if name != target and removing[label]}
        chance = beside_chance.get(label)
        chance = chance if chance is not None and chance.controls else None
        reasons = ["no domain or relation of the facts is its target"]
        if target or not removing[label]:
            own = _loss(level[target].change[label][0]) if target and removing[label] else 0.0
            losses = {name: _loss(one) for name, one in others.items()}
            reasons = reasons_against(mask.num_removed, own, losses, chance, mask.unit)
        others_mean: Estimate | None = mean_of(list(others.values())).estimate(bootstrap) if others and target else None
        return Removal(
            name=label,
            target=target,
            removed=mask.num_removed,
            removed_per_group=mask.removed_per_group,
            share=share(mask),
            domains=of_domains[label],
            relations=of_relations[label],
            others_mean=others_mean,
            random_per_control=[one.value for one in both[target].random.get(label, [])] if target else [],
            controls=chance.controls if chance else 0,
            p=chance.p if chance else 1.0,
            q=chance.q if chance else 1.0,
            passes=not reasons,
            reason="; ".join(reasons),
        )

    return FactsResult(
        unit=units[0],
        group=units[1],
        domains=[_scope(name, found, bootstrap) for name, found in domains.items()],
        relations=[_scope(name, found, bootstrap) for name, found in relations.items()],
        removals=[removal(label) for label in masks],
        provenance=provenance,
    )
