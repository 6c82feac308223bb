"""Results of a study of removal as typed data: models, removals, and relearning.

Every delta is an increase of mean next-token loss in nats per token. Intervals are over text unless stated otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from monet.eval.core.estimate import Estimate
from monet.eval.core.seeds import SeedSpread

Interval = tuple[float, float]


@dataclass(frozen=True)
class Times:
    """Ratio of two increases. None means that the other increase is not above zero, so the ratio can be any number.

    Args:
        value: ratio on the data.
        low, high: ends of the interval.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Trial:
    """Effect of a share on one domain on `validation`.

    Args:
        removed: number of removed units.
        target_delta: increase in the domain itself.
        others_max_delta, others_max_name: increase in the other domain that lost most.
        random_max_delta: increase in the domain itself under the random removal that cost most.
    """

    removed: int
    target_delta: float
    others_max_delta: float
    others_max_name: str
    random_max_delta: float

    @property
    def holds(self) -> bool:
        """The removal costs the domain more than it costs any other, and more than any random removal costs it."""
        return self.removed > 0 and self.target_delta > max(self.others_max_delta, self.random_max_delta)


@dataclass(frozen=True)
class Share:
    """A share of all units that was tried for every domain."""

    share: float
    domains: dict[str, Trial]

    @property
    def holds(self) -> list[str]:
        """The domains that hold at this share."""
        return [name for name, trial in self.domains.items() if trial.holds]


@dataclass(frozen=True)
class Loss:
    """The whole model's loss on one domain, and the amount of text.

    Args:
        sources: originals that the documents were cut from; None if they are unknown.
    """

    name: str
    loss: Estimate
    windows: int
    documents: int
    sources: int | None


@dataclass(frozen=True)
class Model:
    """One trained model.

    Args:
        name: its run's name.
        kind: "monet" or "llama".
        unit, units: kind of removed unit, and the model's number of units.
        parameters: number of parameters.
        step, tokens: length of its training; None if the export does not record it.
        share: the share that was settled on.
        shares: all shares that were tried, on `validation`.
        losses: losses of the whole model.
        fingerprint: equal for equal weights.
    """

    name: str
    kind: str
    unit: str
    units: int
    parameters: int
    step: int | None
    tokens: int | None
    share: float
    shares: list[Share]
    losses: list[Loss]
    fingerprint: str


@dataclass(frozen=True)
class Against:
    """A removal and random controls of one kind, on its own domain, all on the same windows.

    Args:
        target_delta, target_interval: increase under the removal, on these windows.
        random_delta: mean over the controls.
        random_interval: interval of a single control; it includes the spread over controls and over text.
        controls: number of controls.
        p, q: chance that a control does as much, and the false discovery rate over the domains.
        reached: mass of a control over that of the removal; None where the mass is unknown.
    """

    target_delta: float
    target_interval: Interval
    random_delta: float
    random_interval: Interval
    controls: int
    p: float
    q: float
    reached: float | None


@dataclass(frozen=True)
class Removal:
    """Effect of the removal of one domain's units, in one model or as the mean of several.

    Args:
        name: the domain.
        removed, share: units removed, and their share of all; a mean over models.
        removed_per_group: removed units by routing group or layer.
        target_delta, target_interval: increase on the domain itself.
        others_mean_delta, others_mean_interval: mean over all other domains.
        others_max_delta, others_max_interval, others_max_name: the other domain that lost most.
        family_mean_delta, family_mean_interval: mean over the other domains of its family. They are None for a
            domain that is the only one of its family, and so are the next three.
        family_max_delta, family_max_name: the domain of its family that lost most.
        times_family, times_worst: target over the family's mean, and over the worst other domain.
        random_delta, random_interval: increase on the domain itself under random removals of equal number.
        equal_mass_delta, equal_mass_interval: the same under random removals of equal mass.
        equal_activity_delta, equal_activity_interval: the same under random removals of equal activity.
        against: all results of these controls, by their kind.
        p, q: against the controls of equal number. Over models the largest.
        passes: the core's verdict, see `monet.eval.core.chance.reasons_against`. Over models: it passes in every one.
        reason: why it does not pass; empty if it does.
    """

    name: str
    removed: float
    share: float
    removed_per_group: list[float]
    target_delta: float
    target_interval: Interval
    others_mean_delta: float
    others_mean_interval: Interval
    others_max_delta: float
    others_max_interval: Interval
    others_max_name: str
    family_mean_delta: float | None
    family_mean_interval: Interval | None
    family_max_delta: float | None
    family_max_name: str | None
    times_family: Times | None
    times_worst: Times
    random_delta: float
    random_interval: Interval
    equal_mass_delta: float
    equal_mass_interval: Interval
    equal_activity_delta: float
    equal_activity_interval: Interval
    against: dict[str, Against]
    p: float
    q: float
    passes: bool
    reason: str


@dataclass(frozen=True)
class Domain(Removal):
    """A removal over all models of one kind: values are means, p and q the largest, and it passes if all models pass.

    Args:
        seeds: the removal in each model, in the order of the models.
        spread: how some of the deltas spread over training seeds and over text; empty for a single model.
    """

    seeds: list[Removal]
    spread: dict[str, SeedSpread]

    @property
    def passed(self) -> int:
        """Models in which it passes."""
        return sum(one.passes for one in self.seeds)


@dataclass(frozen=True)
class Stage:
    """A removal's cost after some training.

    Args:
        step: optimiser steps; 0 before training.
        cost: loss above that of the whole model after the same training.
        returned: recovered share of the first cost; None before training, or if nothing was lost.
    """

    step: int
    cost: Estimate
    returned: Estimate | None


@dataclass(frozen=True)
class Arm:
    """One way to remove, and its training; over models the means.

    Args:
        name: "own" or "random".
        removed: number of units, mean over the removals.
        stages: costs by step.
    """

    name: str
    removed: float
    stages: list[Stage]


@dataclass(frozen=True)
class Relearning:
    """How much of a domain's loss a few steps of training on it recover.

    Args:
        name: the domain.
        kind: the models' kind.
        arms: means over all models.
        seeds: the arms of each model.
    """

    name: str
    kind: str
    arms: list[Arm]
    seeds: list[list[Arm]]
