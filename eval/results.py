"""What an ablation found: baselines, deltas, controls and verdicts, as JSON and back."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.errors import CheckpointError
from monet.json_text import read_json

if TYPE_CHECKING:
    from monet.eval.document import Report

FORMAT = "monet-ablation/1"
RESULT_NAME = "result.json"


@dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Baseline:
    """One domain under the whole model: mean loss in nats a token, its perplexity, and what it was measured on."""

    name: str
    loss: Estimate
    perplexity: float
    tokens: int
    windows: int
    documents: int


@dataclass(frozen=True)
class Verdict:
    """What one domain's mask did. Every delta is an increase of mean loss in nats a token.

    Args:
        name: the domain whose experts were removed.
        target_delta, target_interval: on the domain itself.
        others_max_delta, others_max_name: the other domain that lost most.
        others_mean_delta, others_mean_interval: unweighted mean over the other domains.
        random_delta: on the domain itself, mean over the random masks of equal size.
        random_interval: of a single random mask's delta there; a draw takes one seed and one resample, so the
            interval holds the spread over masks as well as over documents.
        random_per_seed: the deltas that `random_delta` is the mean of.
        experts, experts_per_group, share: experts removed, in all, per routing group, and of all experts.
        passes: the target lost more than any other domain, and its interval lies above the random masks'.
        reason: why it does not pass; empty if it does.
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
    random_per_seed: list[float]
    experts: int
    experts_per_group: list[int]
    share: float
    passes: bool
    reason: str


@dataclass(frozen=True)
class AblationResult:
    """Outcome of an ablation; `to_json` and `from_json` are inverse.

    Args:
        domains: one verdict a mask, in the order of the rows below.
        evaluated: one baseline a domain, in the order of the columns below.
        delta: per mask and evaluated domain, increase of mean loss in nats a token.
        perplexity: per mask and evaluated domain, perplexity after removal.
        random: like `delta`, mean over the random masks of equal size; None where it was not measured.
        provenance: model, masks, data, settings, versions, date.
    """

    domains: list[Verdict]
    evaluated: list[Baseline]
    delta: list[list[Estimate]]
    perplexity: list[list[float]]
    random: list[list[Estimate | None]]
    provenance: dict[str, Any]

    @property
    def passes(self) -> bool:
        """Every domain's mask passes."""
        return all(verdict.passes for verdict in self.domains)

    @property
    def sentence(self) -> str:
        """How many masks pass, in words."""
        passed = sum(verdict.passes for verdict in self.domains)
        return f"{passed} of {len(self.domains)} masks hit their own domain hardest, and harder than random masks"

    def report(self) -> Report:
        """Matrices, verdicts and what they were measured on."""
        from monet.eval.ablation_report import report_of

        return report_of(self)  # pyright: ignore[reportArgumentType] - the checker knows this file by two names

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, allow_nan=False))

    @classmethod
    def from_json(cls, content: Any) -> AblationResult:
        """Build a result from what `to_json` gave.

        Raises:
            CheckpointError: not the layout of this version.
        """

        def estimate(entry: Any) -> Estimate:
            return Estimate(**entry)

        try:
            if content["format"] != FORMAT:
                raise CheckpointError(
                    f"format {content['format']!r} where {FORMAT!r} is read; run `monet ablate` again"
                )
            pairs = ("target_interval", "others_mean_interval", "random_interval")
            return cls(
                domains=[Verdict(**{**row, **{key: tuple(row[key]) for key in pairs}}) for row in content["domains"]],
                evaluated=[Baseline(**{**row, "loss": estimate(row["loss"])}) for row in content["evaluated"]],
                delta=[[estimate(cell) for cell in row] for row in content["delta"]],
                perplexity=content["perplexity"],
                random=[[None if cell is None else estimate(cell) for cell in row] for row in content["random"]],
                provenance=content["provenance"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"no ablation result ({error!r}); write one with `monet ablate`") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AblationResult:
        """Read result.json, or the one in a folder of `monet ablate`.

        Raises:
            CheckpointError: missing or unreadable file.
        """
        file = Path(path) / RESULT_NAME if Path(path).is_dir() else Path(path)
        try:
            content = read_json(file)
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file; write it with `monet ablate`") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: unreadable ({error}); run `monet ablate` again") from None
        return cls.from_json(content)
