"""The result of an ablation: baselines, deltas, controls and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from monet.eval.core.bootstrap import few
from monet.eval.core.effects import Effect, Effects
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Baseline:
    """One domain under the whole model: mean loss in nats per token, its perplexity, and the amount of text.

    Args:
        sources: number of sources from which the documents were cut; None if they are not known.
    """

    name: str
    loss: Estimate
    perplexity: float
    tokens: int
    windows: int
    documents: int
    sources: int | None = None


def caution_on_few(evaluated: Sequence[Baseline]) -> str:
    """A caution that names domains with few sources (or documents, if sources are not known); empty if none has few."""
    sources = {one.name: one.sources for one in evaluated if one.sources is not None}
    if len(sources) == len(evaluated):
        return few(sources, "source")
    return few({one.name: one.documents for one in evaluated}, "document")


def how_drawn(provenance: Mapping[str, Any], evaluated: Sequence[Baseline]) -> str:
    """The unit over which intervals are drawn, with a caution if units are few."""
    bootstrap = provenance["bootstrap"]
    drawn = f"intervals: {bootstrap['confidence']:.0%} bootstraps over {bootstrap['unit']}s"
    return "\n".join(filter(None, [drawn, caution_on_few(evaluated)]))


@dataclass(frozen=True)
class Verdict:
    """The effect of one domain's mask. Every delta is an increase of mean loss in nats per token.

    Args:
        name: the domain whose units were removed.
        target_delta, target_interval: increase on the domain itself.
        others_max_delta, others_max_name: the other domain that lost most.
        others_mean_delta, others_mean_interval: unweighted mean over the other domains.
        random_delta: increase on the domain itself, mean over the random controls.
        random_interval: interval of one control's delta on the domain. A draw takes one control and one resample, so
            the interval holds the spread over controls and the spread over text.
        random_per_control: the deltas of the controls; `random_delta` is their mean.
        controls, p, q: number of controls, the chance that one of them does as much, and the false discovery rate over
            all masks of the result; see `monet.eval.core.chance`.
        removed, removed_per_group, share: removed units: their number, their number by group, and their share of all.
        passes: see `monet.eval.core.chance.reasons_against`.
        reason: why the mask does not pass; empty if it passes.
    """

    name: str
    target_delta: float
    target_interval: tuple[float, float]
    others_max_delta: float
    others_max_name: str
    others_mean_delta: float
    others_mean_interval: tuple[float, float]
    random_delta: float
    random_interval: tuple[float, float]
    random_per_control: list[float]
    controls: int
    p: float
    q: float
    removed: int
    removed_per_group: list[int]
    share: float
    passes: bool
    reason: str


@dataclass(frozen=True)
class AblationResult(Result):
    """Outcome of an ablation.

    Args:
        unit, group: the removed unit ("expert", "neuron"), and the group by which it is counted.
        domains: one verdict for each mask, in the order of the rows below.
        evaluated: one baseline for each domain, in the order of the columns below.
        delta: increase of mean loss in nats per token, by mask and evaluated domain.
        perplexity: perplexity after removal, by mask and evaluated domain.
        random: like `delta`, mean over the random controls; None if it was not measured.
    """

    FORMAT: ClassVar[str] = "monet-ablation/2"
    COMMAND: ClassVar[str] = "monet ablate"

    unit: str
    group: str
    domains: list[Verdict]
    evaluated: list[Baseline]
    delta: list[list[Estimate]]
    perplexity: list[list[float]]
    random: list[list[Estimate | None]]
    provenance: dict[str, Any]

    @property
    def passes(self) -> bool:
        """Whether every domain's mask passes."""
        return all(verdict.passes for verdict in self.domains)

    @property
    def sentence(self) -> str:
        """The number of masks that pass, in words."""
        passed = sum(verdict.passes for verdict in self.domains)
        return f"{passed} of {len(self.domains)} masks hit their own domain hardest, and harder than chance explains"

    def lines(self) -> list[str]:
        """What a command prints of its result, with the unit of the intervals."""
        return [*super().lines(), how_drawn(self.provenance, self.evaluated)]

    def effects(self) -> Effects:
        """Increases of loss, one row for each mask."""
        rows = [
            Effect.of(
                one,
                Estimate(one.target_delta, *one.target_interval),
                Estimate(one.others_mean_delta, *one.others_mean_interval),
                (one.others_max_delta, one.others_max_name),
                Estimate(one.random_delta, *one.random_interval) if one.controls else None,
            )
            for one in self.domains
        ]
        return Effects(
            "Increase of the mean next-token loss",
            "nats per token",
            self.provenance["bootstrap"]["confidence"],
            self.unit,
            {"text": self.provenance["data_fingerprint"]},
            self.provenance["held_out"],
            rows,
        )
