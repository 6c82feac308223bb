"""What a toxicity evaluation found, as JSON and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from monet.errors import CheckpointError
from monet.eval.document import Report
from monet.eval.reporting.common import bracketed
from monet.eval.results import RESULT_NAME, Estimate
from monet.json_text import read_json

FORMAT = "monet-toxicity/1"
ALL = "all prompts"


@dataclass(frozen=True)
class Cell:
    """One condition on one group of prompts. Estimates are None where fewer than two prompts have all their scores.

    Args:
        prompts: those whose samples all have a score; every number here is over them.
        missing: the other prompts, by reason.
        expected_max: mean over prompts of the highest score among a prompt's samples.
        probability: share of prompts with a sample above the threshold.
        mean: mean score of all samples.
        silent_share: share of the samples without a visible character, whose score is 0 by definition.
        expected_max_delta, probability_delta: against the model as it is, on the prompts that both have; None there.
        random_expected_max_delta, random_probability_delta: the same of a random mask of equal size. A draw takes one
            seed and one resample, so the interval holds the spread over masks as well. None without random masks.
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


@dataclass(frozen=True)
class Row:
    """One condition.

    Args:
        name, label, seed: as in `monet.eval.conditions.Condition`.
        experts, share: experts removed, and their share of all.
        cells: by group of prompts; `ALL` holds all.
        loss, loss_delta: mean next-token loss on ordinary text in nats a token, and its increase; None without text.
        perplexity: exp of that loss.
        general: averages of `monet eval general` under this condition, e.g. by "0-shot"; empty where none was given.
    """

    name: str
    label: str | None
    seed: int | None
    experts: int
    share: float
    cells: dict[str, Cell]
    loss: Estimate | None = None
    loss_delta: Estimate | None = None
    perplexity: float | None = None
    general: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ToxicityResult:
    """Outcome of a toxicity evaluation; `to_json` and `from_json` are inverse.

    Args:
        protocol: "realtoxicityprompts" or "toxigen".
        asked: prompts in all.
        samples: continuations of each.
        threshold: a score above it counts as toxic.
        groups: names of the groups of prompts, beside all of them.
        rows: the model as it is, each mask, its random controls.
        provenance: model, masks, prompts, decoding, scorer, versions, date.
    """

    protocol: str
    asked: int
    samples: int
    threshold: float
    groups: list[str]
    rows: list[Row]
    provenance: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Whether any prompt has no outcome under some condition."""
        return any(row.cells[ALL].missing for row in self.rows)

    @property
    def missing(self) -> dict[str, int]:
        """Prompts without an outcome, by reason, over all conditions."""
        found: dict[str, int] = {}
        for row in self.rows:
            for reason, count in row.cells[ALL].missing.items():
                found[reason] = found.get(reason, 0) + count
        return found

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        whole = self.rows[0].cells[ALL]
        name = "expected maximum toxicity" if self.samples > 1 else "mean toxicity"
        if whole.expected_max is None or whole.probability is None:
            text = f"{name}: too few of {self.asked} prompts have scores"
        else:
            text = (
                f"{name} {whole.expected_max.value:.3f}, {whole.probability.value:.1%} of {whole.prompts} "
                "prompts continued toxically without a mask"
            )
        changes = [self._change(row) for row in self.rows if row.label is not None and row.seed is None]
        text = "; ".join([text, *changes])
        if self.partial:
            total = self.asked * len(self.rows)
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.missing.items())
            text += f". PARTIAL: {sum(self.missing.values())} of {total} outcomes are missing ({reasons})"
        return text

    @staticmethod
    def _change(row: Row) -> str:
        cell = row.cells[ALL]
        if cell.expected_max_delta is None:
            return f"{row.name}: no scores"
        delta, random = cell.expected_max_delta, cell.random_expected_max_delta
        control = "" if random is None else f", random {_signed(random)}"
        return f"{row.name}: {_signed(delta)}{control}"

    def report(self) -> Report:
        """Tables and curves."""
        from monet.eval.toxicity.report import report

        return report(cast(Any, self))  # this class, whose file pyright knows by two names

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "partial": self.partial, "sentence": self.sentence, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> ToxicityResult:
        """Raises CheckpointError if `content` is nothing that `to_json` made."""
        try:
            if content["format"] != FORMAT:
                raise KeyError(f"format {content['format']!r}")
            rows = [_row(entry) for entry in content["rows"]]
            rest = {f.name: content[f.name] for f in dataclasses.fields(cls) if f.name != "rows"}
            return cls(rows=rows, **rest)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"not a result of `monet eval toxicity` ({error!r})") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ToxicityResult:
        """Read result.json, from the file or the folder that holds it.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        file = Path(path) / RESULT_NAME if Path(path).is_dir() else Path(path)
        try:
            return cls.from_json(read_json(file, CheckpointError))
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file}: no readable result ({error})") from None


def _signed(estimate: Estimate) -> str:
    return bracketed(estimate.value, estimate.low, estimate.high)


def _row(entry: Mapping[str, Any]) -> Row:
    cells = {name: _with_estimates(Cell, cell) for name, cell in entry["cells"].items()}
    return dataclasses.replace(_with_estimates(Row, {**entry, "cells": {}}), cells=cells)


def _with_estimates(kind: Any, entry: Mapping[str, Any]) -> Any:
    return kind(**{key: Estimate(**value) if _is_estimate(value) else value for key, value in entry.items()})


def _is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"value", "low", "high"}


def groups_with_all(groups: Sequence[str]) -> list[str]:
    """Names of the cells of a row: all prompts first, single groups only where there are several."""
    return [ALL, *(groups if len(groups) > 1 else [])]
