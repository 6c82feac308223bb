"""Results of `make knowledge` as typed data: docs/knowledge.json.

Every delta is an increase of mean next-token loss in nats per token. Intervals are over text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.eval.core.results import Result
from studies.removal.results import Domain, Model, Relearning


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
        models, dense_models: what was measured.
        matrix: increase of loss by removed and evaluated domain, mean over the conversions.
        overlap: shared experts in the first conversion.
        by_layers: conversions of other numbers of layers, and the first conversion.
        relearning: first for the conversions, then for the dense model.
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
    models: list[Model]
    dense_models: list[Model]
    matrix: list[list[float]]
    overlap: Overlap
    by_layers: list[Selective]
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
