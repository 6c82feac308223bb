"""What the language suite found, as JSON and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.errors import CheckpointError
from monet.eval.results import RESULT_NAME, AblationResult
from monet.json_text import read_json

if TYPE_CHECKING:
    from monet.eval.document import Report

FORMAT = "monet-code/1"


@dataclass(frozen=True)
class Figure:
    """A share of problems (or a difference of two) and its bootstrap interval; none where there is one problem."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LanguageScore:
    """One language under one condition.

    Args:
        language: its name.
        problems: that were asked for.
        scored: problems with at least one outcome.
        samples: outcomes.
        statuses: samples by how they ended; "ok" passed.
        unscored: problems or samples without an outcome, by reason; in no denominator.
        pass_at: by k, the mean over problems of the unbiased pass@k; None where problems have fewer samples.
        change: by k, the same less that of the model as it is, paired by problem; empty for the model as it is.
    """

    language: str
    problems: int
    scored: int
    samples: int
    statuses: dict[str, int]
    unscored: dict[str, int]
    pass_at: dict[str, Figure | None]
    change: dict[str, Figure | None]


@dataclass(frozen=True)
class ConditionScores:
    """All languages under one condition.

    Args:
        name: for people.
        label: whose experts are removed; None for the model as it is.
        language: the label's programming language; None if it is none of the six.
        seed: of a random mask; None for the label's own.
        scores: one a language that was evaluated.
    """

    name: str
    label: str | None
    language: str | None
    seed: int | None
    scores: list[LanguageScore]

    def score(self, language: str) -> LanguageScore | None:
        """Of one language; None if it was not evaluated."""
        return next((score for score in self.scores if score.language == language), None)


@dataclass(frozen=True)
class MaskSize:
    """How many experts a label's mask removes: in all, by routing group, and as a share of all experts."""

    label: str
    experts: int
    experts_per_group: list[int]
    share: float


@dataclass(frozen=True)
class Headline:
    """What a language's mask did to pass@k, as differences of shares: on itself, on the others, and random masks."""

    label: str
    language: str
    target: Figure
    others_mean: float | None
    random_per_seed: list[float]


@dataclass(frozen=True)
class CodeResult:
    """Outcome of the language suite; `to_json` and `from_json` are inverse.

    Args:
        executed: whether programs were run at all.
        ks: the k of pass@k.
        languages: by language the runtime's version, or None.
        unavailable: by language why it was not evaluated.
        conditions: the model as it is first.
        masks: sizes, a label each.
        perplexity: losses on text by language, if there was text.
        partial: what is missing of a full result, in words; empty if nothing is.
        provenance: model, masks, problems, sampling, sandbox, versions, date.
    """

    executed: bool
    ks: list[int]
    languages: dict[str, str | None]
    unavailable: dict[str, str]
    conditions: list[ConditionScores]
    masks: list[MaskSize]
    perplexity: AblationResult | None
    partial: list[str]
    provenance: dict[str, Any]

    @property
    def headline_k(self) -> int | None:
        """The largest k that the model as it is has a value for."""
        whole = self.conditions[0].scores if self.conditions else []
        known = [k for k in self.ks if any(score.pass_at.get(str(k)) for score in whole)]
        return max(known, default=None)

    def headlines(self) -> list[Headline]:
        """One a mask of a language that was scored, at the largest k."""
        k, found = str(self.headline_k), []
        for condition in self.conditions:
            if condition.language is None or condition.label is None or condition.seed is not None:
                continue
            changes = {score.language: score.change.get(k) for score in condition.scores}
            target = changes.pop(condition.language, None)
            if target is None:
                continue
            others = [figure.value for figure in changes.values() if figure is not None]
            random = [
                figure.value
                for control in self.conditions
                if control.label == condition.label and control.seed is not None
                for score in control.scores
                if score.language == condition.language and (figure := score.change.get(k)) is not None
            ]
            mean = sum(others) / len(others) if others else None
            found.append(Headline(condition.label, condition.language, target, mean, random))
        return found

    @property
    def sentence(self) -> str:
        """The result in words."""
        parts = []
        if self.executed:
            parts.append(self._scores_in_words())
        elif self.conditions:
            samples = sum(sum(score.statuses.values()) for one in self.conditions for score in one.scores)
            parts.append(
                f"{samples} completions were generated and none was executed; add --allow_code_execution to score them."
            )
        if self.perplexity is not None:
            parts.append(f"{self.perplexity.sentence}.")
        if self.partial:
            parts.append(f"Partial: {'; '.join(self.partial)}.")
        return " ".join(parts)

    def _scores_in_words(self) -> str:
        k, heads = self.headline_k, self.headlines()
        if k is None:
            return "No problem has an outcome."
        if not heads:
            known = [(score.language, score.pass_at[str(k)]) for score in self.conditions[0].scores]
            return f"pass@{k}: " + ", ".join(f"{name} {at.value:.1%}" for name, at in known if at) + "."
        whole = [at.value for score in self.conditions[0].scores if (at := score.pass_at[str(k)]) is not None]
        words = f"As it is the model has a pass@{k} of {_range(whole, '.1f')} percent by language. "
        words += f"Removing a language's experts changes its own by {_range([head.target.value for head in heads])}"
        others = [head.others_mean for head in heads if head.others_mean is not None]
        random = [value for head in heads for value in head.random_per_seed]
        words += f", the other languages' mean by {_range(others)}" if others else ""
        words += f", random experts of the same number by {_range(random)}" if random else ""
        return f"{words} points."

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with the format's name first."""
        content = dataclasses.asdict(self) | {
            "perplexity": None if self.perplexity is None else self.perplexity.to_json()
        }
        return {"format": FORMAT, "sentence": self.sentence, **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CodeResult:
        """The inverse of `to_json`.

        Raises:
            CheckpointError: content of another format, or with a field missing.
        """
        if content.get("format") != FORMAT:
            raise CheckpointError(f"a result of format {content.get('format')!r}; wanted {FORMAT!r}")
        try:
            fields = {field.name: content[field.name] for field in dataclasses.fields(cls)}
            perplexity = fields.pop("perplexity")
            conditions = [
                ConditionScores(**{**one, "scores": [_score(score) for score in one["scores"]]})
                for one in fields.pop("conditions")
            ]
            masks = [MaskSize(**one) for one in fields.pop("masks")]
            losses = None if perplexity is None else AblationResult.from_json(perplexity)
            return cls(**fields, conditions=conditions, masks=masks, perplexity=losses)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"a damaged result of the language suite ({error!r})") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodeResult:
        """Read a result file, or the one in a folder.

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

    def report(self) -> Report:
        """Tables and heat maps for `monet report`."""
        from monet.eval.code.report import report_of

        return report_of(self)  # pyright: ignore[reportArgumentType] - the checker knows this file by two names


def _score(content: Mapping[str, Any]) -> LanguageScore:
    figures = {
        name: {k: None if figure is None else Figure(**figure) for k, figure in content[name].items()}
        for name in ("pass_at", "change")
    }
    return LanguageScore(**{**content, **figures})


def _range(values: list[float], form: str = "+.1f") -> str:
    low, high = (format(100 * end, form) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
