"""Results of `make evidence` as typed data: docs/evidence.json.

Every delta is an increase of mean next-token loss in nats per token. Intervals are over text unless stated otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.eval.ablation.results import Verdict
from monet.eval.core.results import Result
from studies.removal.results import Domain, Model, Relearning


@dataclass(frozen=True)
class EvidenceResult(Result):
    """All numbers of docs/evidence.md.

    Args:
        unit: the unit of all deltas.
        models, dense_models: Monets and dense twins.
        domains: one row for each domain, for the Monets.
        dense: one row for each domain, for the dense twins.
        matrix, dense_matrix: increase of loss by removed and evaluated domain, mean over models.
        relearning: first for the Monets, then for the dense twins.
        failures: verdicts on the first model: the paper's rule "ratio", the rule "argmax", "subjects". On the first
            dense twin: the paper's "first_layer".
        settings: sizes of the measurement.
        provenance: machine, versions, date, text.
    """

    FORMAT: ClassVar[str] = "monet-evidence/2"
    COMMAND: ClassVar[str] = "make evidence"

    unit: str
    models: list[Model]
    dense_models: list[Model]
    domains: list[Domain]
    dense: list[Domain]
    matrix: list[list[float]]
    dense_matrix: list[list[float]]
    relearning: list[Relearning]
    failures: dict[str, list[Verdict]]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def sentence(self) -> str:
        """How many domains pass in every model, in words."""
        passed = sum(one.passes for one in self.domains)
        return f"{passed} of {len(self.domains)} domains pass, models that differ in their seed: {len(self.models)}"
