"""The result of asking facts under masks: log-odds and accuracy of every domain and relation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.errors import ConfigError
from monet.eval.core.effects import Effect, Effects, lowest
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result
from monet.eval.reporting.common import signed


@dataclass(frozen=True)
class Scope:
    """A domain or a relation without a mask. A fact counts once, with the mean over its scored lines.

    Args:
        name: "places" for a domain, "places/capital" for a relation.
        facts: number of facts with a score.
        lines: number of lines.
        unscored: number of lines without a score, by reason.
        chance: accuracy of a random choice among the options.
        log_odds: mean log-odds of the answer against the other options, nats.
        accuracy: share of questions whose answer is likelier than every other option, 0 to 1.
    """

    name: str
    facts: int
    lines: int
    unscored: dict[str, int]
    chance: float
    log_odds: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class Change:
    """What a mask changes in one domain or relation.

    Args:
        log_odds: change of the log-odds, nats.
        accuracy: change of the accuracy, 0 to 1.
        random: change of the log-odds under a single random control: the mean over the controls, with an interval that
            holds the spread over controls as well as over facts. None if the controls were not asked here.
        p: probability that a control lowers the log-odds as much; None if the controls were not asked here.
        q: false discovery rate over all masks and all domains (for a relation: all relations) that have a p.
    """

    log_odds: Estimate
    accuracy: Estimate
    random: Estimate | None
    p: float | None
    q: float | None


@dataclass(frozen=True)
class Removal:
    """The effect of one mask.

    Args:
        name: label of the mask.
        target: domain or relation that the mask is judged by; empty if it has none.
        removed, removed_per_group, share: number of removed units in all and by group, and their share of all units.
        domains, relations: changes, in the order of `FactsResult.domains` and `FactsResult.relations`.
        others_mean: unweighted mean of the changes of the log-odds in all other domains (or relations); None without a
            target or without another domain.
        random_per_control: changes of the target's log-odds under the random controls.
        controls, p, q: number of controls, the probability that a control lowers the target's log-odds as much, and the
            false discovery rate over all masks with a target; see `monet.eval.core.chance`.
        passes: whether the mask passes; see `monet.eval.core.chance.reasons_against`.
        reason: why the mask does not pass; empty if it passes.
    """

    name: str
    target: str
    removed: int
    removed_per_group: list[int]
    share: float
    domains: list[Change]
    relations: list[Change]
    others_mean: Estimate | None
    random_per_control: list[float]
    controls: int
    p: float
    q: float
    passes: bool
    reason: str


@dataclass(frozen=True)
class FactsResult(Result):
    """Log-odds and accuracy of every domain and relation, and what each mask changes.

    Args:
        unit, group: the removed unit ("expert", "neuron"), and the group that units are counted by.
        domains, relations: scores without a mask.
        removals: one per mask.
        provenance: model, masks, facts, settings, versions, date.
    """

    FORMAT: ClassVar[str] = "monet-facts/1"
    COMMAND: ClassVar[str] = "monet eval facts"
    TOLD: ClassVar[tuple[str, ...]] = ("partial", "sentence")

    unit: str
    group: str
    domains: list[Scope]
    relations: list[Scope]
    removals: list[Removal]
    provenance: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Whether a line has no score."""
        return any(one.unscored for one in self.domains)

    @property
    def sentence(self) -> str:
        """A sentence with the log-odds without a mask and the number of masks that pass."""
        facts, lines = (sum(getattr(one, of) for one in self.domains) for of in ("facts", "lines"))
        odds = sum(one.log_odds.value for one in self.domains) / len(self.domains)
        right = sum(one.accuracy.value for one in self.domains) / len(self.domains)
        words = (
            f"{facts} facts in {lines} lines of {len(self.domains)} domains: log-odds {signed(odds, 3)} nats, accuracy "
            f"{right:.3f} (means over domains)"
        )
        judged = [(one, target) for one in self.removals if (target := self.target_change(one)) is not None]
        if judged:
            passed = sum(one.passes for one, _ in judged)
            mean = sum(change.log_odds.value for _, change in judged) / len(judged)
            words += (
                f"; {passed} of {len(judged)} masks lower the log-odds of their target most and more than chance "
                f"explains, on average the target changes by {signed(mean, 3)} nats"
            )
        if without := len(self.removals) - len(judged):
            words += f"; {without} masks have no target"
        if limit := self.provenance["facts"]["limit"]:
            words += f" (at most {limit} facts of each relation)"
        return words + (" (partial: some lines have no score)" if self.partial else "")

    def lines(self) -> list[str]:
        """What a command prints of its result, with the numbers of lines without a score."""
        faults = [
            f"{one.name}: {count} of {one.lines} lines have no score ({reason})"
            for one in self.domains
            for reason, count in one.unscored.items()
        ]
        return [*super().lines(), *faults]

    def level(self, removal: Removal) -> tuple[list[str], list[Change]]:
        """Names and changes of the level of the mask's target: all relations if it is a relation, else all domains."""
        relations = "/" in removal.target
        scopes = self.relations if relations else self.domains
        return [one.name for one in scopes], removal.relations if relations else removal.domains

    def target_change(self, removal: Removal) -> Change | None:
        """The change of the mask's target; None if it has none."""
        names, changes = self.level(removal)
        return dict(zip(names, changes, strict=True)).get(removal.target)

    def effects(self) -> Effects:
        """One row per mask with a target; values are changes of its log-odds in nats.

        Raises:
            ConfigError: no mask has a target.
        """
        rows = []
        for one in self.removals:
            target = self.target_change(one)
            if target is None:
                continue
            names, changes = self.level(one)
            values = {name: change.log_odds.value for name, change in zip(names, changes, strict=True)}
            rows.append(Effect.of(one, target.log_odds, one.others_mean, lowest(values, one.target), target.random))
        if not rows:
            raise ConfigError("a result of `monet eval facts` without judged masks has nothing to compare over seeds")
        told = self.provenance
        return Effects(
            "Change of the answer's log-odds",
            "nats",
            told["bootstrap"]["confidence"],
            self.unit,
            {"facts": told["facts"]["fingerprint"]},
            told["held_out"],
            rows,
        )
