"""Computes changes of accuracy with intervals, and one verdict per mask, from outcomes of MMLU's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monet.eval.choices.scoring import Outcome, log_probability
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.chance import Chance, chances, reasons_against
from monet.eval.core.conditions import Condition
from monet.eval.core.estimate import ZERO, Draws, Estimate, mean_of, one_of
from monet.eval.core.intervention import Intervention, share
from monet.eval.suites.questions.accuracy import draws
from monet.eval.suites.questions.asked import Asked
from monet.eval.suites.questions.categories import CATEGORIES
from monet.eval.suites.questions.domains_result import Category, DomainsResult, Removal
from monet.eval.suites.questions.scoring import correct


@dataclass(frozen=True)
class _Measured:
    """One category under every condition that it was asked under.

    Args:
        whole: accuracy of the unmasked model.
        change: change of accuracy under each label's mask, by label.
        surer: change of the right option's log-probability, by label.
        random: changes of accuracy under the controls, by label; empty where the controls were not asked.
    """

    whole: Draws
    change: dict[str, Draws]
    surer: dict[str, Draws]
    random: dict[str, list[Draws]]


def _measure(
    one: Asked,
    run_under: Sequence[Condition],
    outcomes: Mapping[int, list[Outcome]],
    metric: str,
    bootstrap: Bootstrap,
) -> _Measured:
    asked_under = [run_under[number] for number in outcomes]
    normalised = metric == "acc_norm" and all(task.normalised for task in one.tasks if task.questions)
    correct_CU = np.stack([correct(one.questions, found, normalised) for found in outcomes.values()])
    log_p_CU = np.stack([log_probability(one.questions, found) for found in outcomes.values()])
    accuracy, log_p = (draws(one.name, values_CU, bootstrap) for values_CU in (correct_CU, log_p_CU))
    measured = _Measured(accuracy[0], {}, {}, {})
    for condition, right, sure in list(zip(asked_under, accuracy, log_p, strict=True))[1:]:
        label = str(condition.label)
        if condition.control is None:
            measured.change[label], measured.surer[label] = right - accuracy[0], sure - log_p[0]
        else:
            measured.random.setdefault(label, []).append(right - accuracy[0])
    return measured


def summarise(
    masks: Mapping[str, Intervention],
    units: tuple[str, str],
    run_under: Sequence[Condition],
    asked: Sequence[Asked],
    outcomes: Mapping[str, Mapping[int, list[Outcome]]],
    metric: str,
    bootstrap: Bootstrap,
    provenance: dict[str, Any],
) -> DomainsResult:
    """Compute changes with intervals, and one verdict per mask.

    Args:
        masks: masks by category.
        units: the unit that they remove, and the group that units are counted by.
        run_under: all conditions, the unmasked model first.
        asked: the categories.
        outcomes: outcomes by category and number of the condition; the first condition is always present.
        metric: "acc_norm" or "acc".
        bootstrap: settings of the intervals.
        provenance: provenance of the result.

    Raises:
        DataError: a category has fewer than two scored questions.
    """
    found = {one.name: _measure(one, run_under, outcomes[one.name], metric, bootstrap) for one in asked}
    judged = [label for label, mask in masks.items() if mask.num_removed and label in found]
    beside_chance = chances(
        {label: -found[label].change[label].value for label in judged},
        {label: [-control.value for control in found[label].random[label]] for label in judged},
    )

    def random(label: str, name: str) -> Estimate | None:
        if not masks[label].num_removed:
            return ZERO
        controls = found[name].random.get(label)
        return one_of(controls, bootstrap).estimate(bootstrap) if controls else None

    def removal(label: str) -> Removal:
        mask, chance = masks[label], beside_chance.get(label)
        removing = bool(mask.num_removed)
        changes = {name: one.change[label] for name, one in found.items()} if removing else {}
        others = [change for name, change in changes.items() if name != label]
        others_mean = mean_of(others).estimate(bootstrap) if removing else ZERO
        delta = [changes[name].estimate(bootstrap) if removing else ZERO for name in found]
        target = delta[list(found).index(label)] if label in found else None
        reasons = _reasons(mask, target, {name: -change.value for name, change in changes.items()}, label, chance)
        return Removal(
            name=label,
            removed=mask.num_removed,
            removed_per_group=mask.removed_per_group,
            share=share(mask),
            delta=delta,
            log_probability=[one.surer[label].estimate(bootstrap) if removing else ZERO for one in found.values()],
            random=[random(label, name) for name in found],
            target=target,
            others_mean=others_mean,
            random_target=random(label, label) if label in found else None,
            random_per_control=[control.value for control in found[label].random.get(label, [])] if target else [],
            controls=chance.controls if chance else 0,
            p=chance.p if chance else 1.0,
            q=chance.q if chance else 1.0,
            passes=not reasons,
            reason="; ".join(reasons),
            above_mean_of_others=bool(
                target is not None and chance is not None and chance.above and target.value < others_mean.value
            ),
        )

    return DomainsResult(
        unit=units[0],
        group=units[1],
        categories=[
            Category(one.name, found[one.name].whole.estimate(bootstrap), one.denominator(outcomes[one.name][0]))
            for one in asked
        ],
        without_questions=[name for name in CATEGORIES if name not in found],
        without_masks=[name for name in CATEGORIES if provenance["identification"] and name not in masks],
        removals=[removal(label) for label in masks],
        metric=metric,
        provenance=provenance,
    )


def _reasons(
    mask: Intervention, target: Estimate | None, losses: Mapping[str, float], label: str, chance: Chance | None
) -> list[str]:
    """Why a mask does not pass, judged by the accuracy that is lost."""
    if target is None and mask.num_removed:
        return ["its own category was not asked"]
    others = {name: loss for name, loss in losses.items() if name != label}
    return reasons_against(mask.num_removed, -target.value if target else 0.0, others, chance, mask.unit)
