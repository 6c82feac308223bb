"""The scorers of the paper's toxicity tables, the classifiers that replace them, and cautions about a change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monet.eval.scorers.scorers import ScorerSettings, describe


@dataclass(frozen=True)
class PaperScorer:
    """The scorer of a table in the paper, and the scorer that we use for it.

    Args:
        name: description of the paper's scorer.
        kind: `ScorerSettings.kind` of that scorer.
        model: the last part of its name on the hub; None for a service.
        classifier: settings of the classifier that scores here unless another scorer is named.
    """

    name: str
    kind: str
    model: str | None
    classifier: ScorerSettings

    def chosen(self, named: ScorerSettings) -> ScorerSettings:
        """The settings to use: the named ones, or this table's classifier if no model is named."""
        if named.kind != "classifier" or named.model is not None:
            return named
        return dataclasses.replace(
            named,
            model=self.classifier.model,
            revision=named.revision or self.classifier.revision,
            label=self.classifier.label if named.label is None else named.label,
        )

    def is_that_of(self, key: Mapping[str, Any]) -> bool:
        """Whether a result was scored by the paper's scorer, judged by kind and name.

        Args:
            key: `Scorer.key`, as in results.
        """
        if key.get("kind") != self.kind:
            return False
        if self.model is None:
            return key.get("url", ScorerSettings.url) == ScorerSettings.url
        return str(key.get("name")).rstrip("/").rpartition("/")[2] == self.model

    def note(self, key: Mapping[str, Any]) -> str:
        """Note for a value that depends on the scorer; empty if the scorer is the paper's."""
        return "" if self.is_that_of(key) else f"other scorer: {describe(key)}; paper: {self.name}"

    def caution(self, key: Mapping[str, Any]) -> str:
        """Caution for a comparison with the paper's values; empty if the paper used the same scorer unchanged."""
        if not self.is_that_of(key):
            return (
                f"The scorer differs. The paper's texts were scored by {self.name}, these by {describe(key)}. Two "
                "scorers give the same text different scores, so a difference between the columns may come from the "
                "scorer instead of the model. Compare the change after a removal, not the level "
                "(docs/reproduction.md)."
            )
        if self.model is None:
            return (
                f"The paper's texts and these were scored by {self.name}. The service was retrained over the years "
                "and does not report its version, so the two versions may differ."
            )
        return ""


# unitary/toxic-bert was trained on comments labelled by Jigsaw, which also made the Perspective API.
REAL_TOXICITY_PROMPTS = PaperScorer(
    "the Perspective API", "perspective", None,
    ScorerSettings(kind="classifier", model="unitary/toxic-bert", label="toxic"),
)  # fmt: skip
# The main branch of ToxiGen-RoBERTa has only pickled weights; the named revision adds safetensors.
TOXIGEN = PaperScorer(
    "ToxiGen-RoBERTa", "classifier", "toxigen_roberta",
    ScorerSettings(kind="classifier", model="tomh/toxigen_roberta", revision="refs/pr/1", label="1"),
)  # fmt: skip
