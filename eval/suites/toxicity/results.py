"""The result of a toxicity evaluation: numbers of each condition, and their comparison with random controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from monet.errors import ConfigError
from monet.eval.core.chance import Chance
from monet.eval.core.effects import Effect, Effects
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result
from monet.eval.reporting.common import estimated

if TYPE_CHECKING:
    pass

ALL = "all prompts"


@dataclass(frozen=True)
class Cell:
    """One condition on one group of prompts. An estimate is None if no prompt has all its scores.

    Args:
        prompts: number of prompts whose samples all have a score; every number here is computed over them.
        missing: number of the other prompts, by reason.
        expected_max: mean over prompts of the highest score among a prompt's samples.
        probability: share of prompts with a sample above the threshold.
        mean: mean score of all samples.
        silent_share: share of the samples without a visible character, whose score is 0 by definition.
        expected_max_delta, probability_delta: change against the unmasked model, on the prompts that both have; None
            for the unmasked model.
        random_expected_max_delta, random_probability_delta: the same change under one of the mask's random controls. A
            draw takes one control and one resample, so the interval includes the spread over controls. None without
            controls.
        expected_max_chance, probability_chance: how often a random control lowers the number as much as the mask, over
            all masks on this group of prompts. None without controls.
    """

    prompts: int
    missing: dict[str, int]
    expected_max: Estimate | None
    probability: Estimate | None
    mean: float | None
    silent_share: float | None
    expected_max_delta: Estimate | None = None
    probability_delta: Estimate | None = None
    random_expected_max_delta: Estimate | None = None
    random_probability_delta: Estimate | None = None
    expected_max_chance: Chance | None = None
    probability_chance: Chance | None = None


@dataclass(frozen=True)
class Row:
    """One condition.

    Args:
        name, label, control: as in `monet.eval.core.conditions.Condition`.
        removed, share: number of removed units, and their share of all; for a control, those of its mask.
        cells: cells by group of prompts; `ALL` holds all prompts.
        loss, loss_delta: mean next-token loss on ordinary text in nats per token, and its increase; None without text.
        random_loss_delta: the increase under one of the mask's random controls; None without controls.
        perplexity: exp of `loss`.
        general: averages of `monet eval general` under this condition, e.g. by "0-shot"; empty if none were given.
    """

    name: str
    label: str | None
    control: int | None
    removed: int
    share: float
    cells: dict[str, Cell]
    loss: Estimate | None = None
    loss_delta: Estimate | None = None
    random_loss_delta: Estimate | None = None
    perplexity: float | None = None
    general: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ToxicityResult(Result):
    """Result of a toxicity evaluation.

    Args:
        protocol: "realtoxicityprompts" or "toxigen".
        asked: number of all prompts.
        samples: continuations of each prompt.
        threshold: a score above it counts as toxic.
        groups: names of the groups of prompts, in addition to the group of all prompts.
        unit, group: the removed unit ("expert"), and the group that units are counted by.
        held_out: whether the masks were chosen on held-out prompts; None if there is no record.
        rows: rows of the unmasked model, of each mask, and of its random controls.
        provenance: model, masks, prompts, decoding, scorer, versions, date.
    """

    FORMAT: ClassVar[str] = "monet-toxicity/2"
    COMMAND: ClassVar[str] = "monet eval toxicity"
    TOLD: ClassVar[tuple[str, ...]] = ("partial", "sentence")

    protocol: str
    asked: int
    samples: int
    threshold: float
    groups: list[str]
    unit: str
    group: str
    held_out: bool | None
    rows: list[Row]
    provenance: dict[str, Any]

    @property
    def masks(self) -> list[Row]:
        """The rows of the masks, without their random controls."""
        return [row for row in self.rows if row.label is not None and row.control is None]

    @property
    def partial(self) -> bool:
        """Whether any prompt has no outcome under some condition."""
        return any(row.cells[ALL].missing for row in self.rows)

    @property
    def missing(self) -> dict[str, int]:
        """Number of prompts without an outcome, by reason, over all conditions."""
        found: dict[str, int] = {}
        for row in self.rows:
            for reason, count in row.cells[ALL].missing.items():
                found[reason] = found.get(reason, 0) + count
        return found

    @property
    def sentence(self) -> str:
        """A summary of the result."""
        whole = self.rows[0].cells[ALL]
        name = "expected maximum toxicity" if self.samples > 1 else "mean toxicity"
        if whole.expected_max is None or whole.probability is None:
            text = f"{name}: none of {self.asked} prompts has all its scores"
        else:
            text = (
                f"{name} {whole.expected_max.value:.3f}, {whole.probability.value:.1%} of {whole.prompts} "
                "prompts continued toxically without a mask"
            )
        text = "; ".join([text, *map(_change, self.masks)])
        if self.partial:
            total = self.asked * len(self.rows)
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.missing.items())
            text += f". PARTIAL: {sum(self.missing.values())} of {total} outcomes are missing ({reasons})"
        return text

    def effects(self) -> Effects:
        """Two rows per mask, over all prompts: changes of the (expected maximum) toxicity and of its probability.

        Raises:
            ConfigError: no mask has scores.
        """
        most = "expected maximum" if self.samples > 1 else "mean"
        rows = []
        for row in self.masks:
            cell = row.cells[ALL]
            measures = {
                most: (cell.expected_max_delta, cell.random_expected_max_delta, cell.expected_max_chance),
                "probability": (cell.probability_delta, cell.random_probability_delta, cell.probability_chance),
            }
            for name, (change, random, chance) in measures.items():
                if change is not None:
                    found = chance or Chance(0, 1.0, 1.0)
                    told = f"{row.label}, {name}"
                    rows.append(
                        Effect(told, change, None, None, "", random, found.controls, found.p, found.q, None, "")
                    )
        if not rows:
            raise ConfigError("a result of `monet eval toxicity` without masks has nothing to compare over seeds")
        told = self.provenance
        return Effects(
            "Change of toxicity",
            "score or share, 0 to 1",
            told["bootstrap"]["confidence"],
            self.unit,
            {**{key: told[key] for key in ("prompts", "decoding", "scorer")}, "threshold": self.threshold},
            self.held_out,
            rows,
        )


def _change(row: Row) -> str:
    """Describe the change by a mask."""
    cell = row.cells[ALL]
    delta, random, chance = cell.expected_max_delta, cell.random_expected_max_delta, cell.expected_max_chance
    if delta is None:
        return f"{row.name}: no scores"
    beside = "" if random is None or chance is None else f", random {estimated(random, sign=True)}, {chance.words}"
    return f"{row.name}: {estimated(delta, sign=True)}{beside}"


def groups_with_all(groups: Sequence[str]) -> list[str]:
    """Names of the cells of a row: all prompts first, then single groups if there are several."""
    return [ALL, *(groups if len(groups) > 1 else [])]
