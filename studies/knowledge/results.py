"""Results of `make knowledge` as typed data: docs/knowledge.json.

Every delta is an increase of mean next-token loss in nats per token. Intervals are over text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result
from studies.removal.results import Domain, Model, Relearning
from studies.transcoders.folder import Trained


@dataclass(frozen=True)
class Overlap:
    """Shared experts of domains under a rule by which domains can share experts.

    Args:
        share: experts of each domain, as a share of all.
        names: the domains.
        jaccard: shared experts over the experts of either, by two domains.
        mean: mean over pairs of different domains.
        permuted: the same mean under each permutation of the labels.
    """

    share: float
    names: list[str]
    jaccard: list[list[float]]
    mean: float
    permuted: list[float]


@dataclass(frozen=True)
class Selective:
    """Selectivity of a conversion of some number of layers.

    Args:
        name: the conversion.
        layers: converted layers.
        perplexity: the hybrid's perplexity.
        share: share of experts that each domain may lose.
        passes: number of domains that pass.
        domains: each domain in this conversion.
    """

    name: str
    layers: list[int]
    perplexity: float | None
    share: float
    passes: int
    domains: list[Domain]


@dataclass(frozen=True)
class LostFacts:
    """Change of facts under the removal of one domain.

    Args:
        name: the removed domain.
        target: the domain or "domain/relation" of facts that it is judged by.
        log_odds, accuracy: change of the target's log-odds in nats, and of its accuracy, 0 to 1.
        others_mean: mean change of the log-odds of all other relations, or domains; None without another one.
        random: change of the target's log-odds under one random removal of equal number.
        controls, p, q: number of random removals, the probability that one lowers the log-odds as much, and the false
            discovery rate over the removals.
        passes, reason: the suite's verdict, see `monet.eval.core.chance.reasons_against`.
        changes, accuracy_changes: change of the log-odds and of the accuracy in every scope, by `AskedFacts.names`.
    """

    name: str
    target: str
    log_odds: Estimate
    accuracy: Estimate
    others_mean: Estimate | None
    random: Estimate | None
    controls: int
    p: float
    q: float
    passes: bool
    reason: str
    changes: list[float]
    accuracy_changes: list[float]


@dataclass(frozen=True)
class AskedFacts:
    """Facts that one model was asked, from the suite of facts.

    Args:
        model, kind: the model's name and kind.
        names: scopes: all domains of facts, then all relations as "domain/relation".
        facts: number of facts by scope.
        log_odds, accuracy: scores of the whole model by scope.
        removals: one for each removed domain that has facts.
    """

    model: str
    kind: str
    names: list[str]
    facts: list[int]
    log_odds: list[Estimate]
    accuracy: list[Estimate]
    removals: list[LostFacts]

    @property
    def domains(self) -> list[str]:
        """The scopes that are domains, which come first."""
        return [name for name in self.names if "/" not in name]


@dataclass(frozen=True)
class LostQuestions:
    """Change of the accuracy on questions under the removal of one domain, 0 to 1.

    Args:
        name: the removed domain.
        changes: change on each benchmark.
        average: change of the mean over the benchmarks.
        random: the same under one random removal of equal number; None without controls.
        controls, p, q: number of random removals, the probability that one costs as much on average, and the false
            discovery rate over the removals.
    """

    name: str
    changes: list[Estimate]
    average: Estimate
    random: Estimate | None
    controls: int
    p: float
    q: float


@dataclass(frozen=True)
class AskedQuestions:
    """Questions that one model was asked, from the suite of general ability.

    Args:
        model, kind: the model's name and kind.
        names: the benchmarks.
        questions: number of scored questions by benchmark.
        accuracy: accuracy of the whole model by benchmark.
        removals: one for each removed domain.
    """

    model: str
    kind: str
    names: list[str]
    questions: list[int]
    accuracy: list[Estimate]
    removals: list[LostQuestions]


@dataclass(frozen=True)
class KnowledgeResult(Result):
    """All numbers of docs/knowledge.md.

    Args:
        unit: the unit of all deltas.
        model: the dense model that was converted.
        layers: converted layers.
        tokens, distil_tokens: tokens that the two stages read.
        fvu: fraction of variance unexplained by layer, mean over the conversions.
        perplexity_dense, perplexity_converted: numbers in the conversion's report, mean over the conversions.
        families: the family of each domain.
        domains: one row for each domain, for the conversions.
        dense: the same for neurons of the same layers of the dense model.
        transcoders: the same for latents of transcoders of the same layers; empty without transcoders.
        models, dense_models, transcoder_models: what was measured.
        trained_transcoders: how the transcoders were trained.
        matrix: increase of loss by removed and evaluated domain, mean over the conversions.
        overlap: shared experts in the first conversion.
        by_layers: conversions of other numbers of layers, and the first conversion.
        facts, questions: what each model was asked, conversions first; empty if it was not asked.
        relearning: first for the conversions, then for the dense model, then for the transcoders.
        missing: parts that were not measured, with the reason.
        settings: sizes of the measurement.
        provenance: machine, versions, date, text.
    """

    FORMAT: ClassVar[str] = "monet-knowledge/1"
    COMMAND: ClassVar[str] = "make knowledge"

    unit: str
    model: str
    layers: list[int]
    tokens: int
    distil_tokens: int
    fvu: dict[str, float]
    perplexity_dense: float | None
    perplexity_converted: float | None
    families: dict[str, str]
    domains: list[Domain]
    dense: list[Domain]
    transcoders: list[Domain]
    models: list[Model]
    dense_models: list[Model]
    transcoder_models: list[Model]
    trained_transcoders: list[Trained]
    matrix: list[list[float]]
    overlap: Overlap
    by_layers: list[Selective]
    facts: list[AskedFacts]
    questions: list[AskedQuestions]
    relearning: list[Relearning]
    missing: dict[str, str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def sentence(self) -> str:
        """How many domains pass in every conversion, in words."""
        passed = sum(one.passes for one in self.domains)
        return (
            f"{passed} of {len(self.domains)} domains pass; conversions that differ in their seed: {len(self.models)}"
        )
