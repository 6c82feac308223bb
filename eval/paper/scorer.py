"""The scorers of the paper's toxicity tables, the classifiers in their places, and what a change of scorer means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monet.eval.scorers.scorers import ScorerSettings, describe


@dataclass(frozen=True)
class PaperScorer:
    """What the paper scored a table with, and what scores it here.

    Args:
        name: the paper's scorer in words.
        kind: its `ScorerSettings.kind`.
        model: the last part of its hub name; None for a service.
        classifier: scores here unless another scorer is named.
    """

    name: str
    kind: str
    model: str | None
    classifier: ScorerSettings

    def chosen(self, named: ScorerSettings) -> ScorerSettings:
        """The settings to score with: those that are named, or this table's classifier where no model is named."""
        if named.kind != "classifier" or named.model is not None:
            return named
        return dataclasses.replace(
            named,
            model=self.classifier.model,
            revision=named.revision or self.classifier.revision,
            label=self.classifier.label if named.label is None else named.label,
        )

    def is_that_of(self, key: Mapping[str, Any]) -> bool:
        """Whether a result was scored by the paper's scorer, as far as kind and name can tell.

        Args:
            key: `Scorer.key`, as results hold it.
        """
        if key.get("kind") != self.kind:
            return False
        if self.model is None:
            return key.get("url", ScorerSettings.url) == ScorerSettings.url
        return str(key.get("name")).rstrip("/").rpartition("/")[2] == self.model

    def note(self, key: Mapping[str, Any]) -> str:
        """Beside a value that depends on the scorer; empty if the scorer is the paper's."""
        return "" if self.is_that_of(key) else f"other scorer: {describe(key)}; paper: {self.name}"

    def caution(self, key: Mapping[str, Any]) -> str:
        """Above a comparison with the paper's values; empty if the scorer is the paper's and cannot have changed."""
        if not self.is_that_of(key):
            return (
                f"The scorer differs. The paper's texts were scored by {self.name}, these by {describe(key)}. Two "
                "scorers give one text different scores, so a difference between the columns may come from the scorer "
                "and not from the model. Compare the change after a removal, not the level (docs/reproduction.md)."
            )
        if self.model is None:
            return (
                f"The paper's texts and these were scored by {self.name}. The service was trained again over the years "
                "and does not tell its version, so the two versions may differ."
            )
        return ""


# unitary/toxic-bert learned from comments that Jigsaw had labelled; Jigsaw also made the Perspective API.
REAL_TOXICITY_PROMPTS = PaperScorer(
    "the Perspective API", "perspective", None,
    ScorerSettings(kind="classifier", model="unitary/toxic-bert", label="toxic"),
)  # fmt: skip
# The main branch of ToxiGen-RoBERTa has pickled weights only; the named revision adds safetensors.
TOXIGEN = PaperScorer(
    "ToxiGen-RoBERTa", "classifier", "toxigen_roberta",
    ScorerSettings(kind="classifier", model="tomh/toxigen_roberta", revision="refs/pr/1", label="1"),
)  # fmt: skip
