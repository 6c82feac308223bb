"""The result of the language suite: pass@k of every condition, and one verdict per language's mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from monet.errors import ConfigError
from monet.eval.ablation.results import AblationResult
from monet.eval.core.effects import Effect, Effects
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class LanguageScore:
    """One language under one condition.

    Args:
        language: name of the language.
        problems: number of requested problems.
        scored: number of problems with at least one outcome.
        samples: number of outcomes.
        statuses: number of samples by how they ended; "ok" passed.
        unscored: number of problems or samples without an outcome, by reason; they are in no denominator.
        pass_at: mean over problems of the unbiased pass@k, by k; None if problems have fewer samples.
        change: `pass_at` minus that of the unmasked model, paired by problem, by k; empty for the unmasked model.
    """

    language: str
    problems: int
    scored: int
    samples: int
    statuses: dict[str, int]
    unscored: dict[str, int]
    pass_at: dict[str, Estimate | None]
    change: dict[str, Estimate | None]


@dataclass(frozen=True)
class ConditionScores:
    """The languages that were evaluated under one condition.

    Args:
        name: name for display.
        label: label whose units are removed; None for the unmasked model.
        language: the label's programming language; None if it is not one of the six.
        control: number of a random control; None for the label's own mask.
        scores: one per language; a control has at least its own language.
    """

    name: str
    label: str | None
    language: str | None
    control: int | None
    scores: list[LanguageScore]

    def score(self, language: str) -> LanguageScore | None:
        """Score of one language; None if it was not evaluated."""
        return next((score for score in self.scores if score.language == language), None)


@dataclass(frozen=True)
class MaskSize:
    """Number of units that a label's mask removes: in all, by group, and as a share of all units."""

    label: str
    removed: int
    removed_per_group: list[int]
    share: float


@dataclass(frozen=True)
class LanguageVerdict:
    """The effect of a language's mask. Every change is one of pass@k, as a share of problems: -0.1 is ten points less.

    Args:
        name: the mask's label.
        language: language of that label.
        target: change in the language itself.
        others_max, others_max_name: change in the other language that lost most; None if no other was evaluated.
        others_mean: unweighted mean over the other languages; None if no other was evaluated.
        random: change in the language itself under one of the mask's random controls. A draw takes one control and one
            resample, so the interval holds the spread over controls as well as over problems. None without controls.
        random_per_control: the changes that `random` averages.
        controls, p, q: number of controls, the probability that a control costs as much, and the false discovery rate
            over all languages; see `monet.eval.core.chance`.
        passes: whether the mask passes; see `monet.eval.core.chance.reasons_against`.
        reason: why the mask does not pass; empty if it does.
    """

    name: str
    language: str
    target: Estimate
    others_max: float | None
    others_max_name: str
    others_mean: Estimate | None
    random: Estimate | None
    random_per_control: list[float]
    controls: int
    p: float
    q: float
    passes: bool
    reason: str


@dataclass(frozen=True)
class CodeResult(Result):
    """Result of the language suite.

    Args:
        executed: whether programs were run at all.
        ks: the values of k in pass@k.
        judged_k: the k that the verdicts are about: the largest one for which the unmasked model has a value.
        languages: the runtime's version by language, or None.
        unavailable: why a language was not evaluated, by language.
        unit, group: the removed unit ("expert"), and the group that units are counted by.
        held_out: whether the masks were chosen on text without these problems; None if there is no record.
        conditions: the unmasked model first.
        masks: size of each label's mask.
        verdicts: one per mask of a scored language, at `judged_k`.
        perplexity: losses on text by language, if there was text.
        partial: descriptions of everything that is missing; empty if the result is complete.
        provenance: model, masks, problems, sampling, sandbox, versions, date.
    """

    FORMAT: ClassVar[str] = "monet-code/2"
    COMMAND: ClassVar[str] = "monet eval code"

    executed: bool
    ks: list[int]
    judged_k: int | None
    languages: dict[str, str | None]
    unavailable: dict[str, str]
    unit: str
    group: str
    held_out: bool | None
    conditions: list[ConditionScores]
    masks: list[MaskSize]
    verdicts: list[LanguageVerdict]
    perplexity: AblationResult | None
    partial: list[str]
    provenance: dict[str, Any]

    @property
    def own(self) -> list[ConditionScores]:
        """The conditions of the masks, without their random controls."""
        return [one for one in self.conditions if one.label is not None and one.control is None]

    @property
    def sentence(self) -> str:
        """A summary of the result."""
        parts = []
        if self.executed:
            parts.append(self._scores_in_words())
        elif self.conditions:
            samples = sum(sum(score.statuses.values()) for one in self.conditions for score in one.scores)
            parts.append(
                f"{samples} completions were generated and none was run; add --allow_code_execution to run and score "
                "them."
            )
        if self.perplexity is not None:
            parts.append(f"Losses on text: {self.perplexity.sentence}.")
        if self.partial:
            parts.append(f"Partial: {'; '.join(self.partial)}.")
        return " ".join(parts)

    def _scores_in_words(self) -> str:
        k = self.judged_k
        if k is None:
            return "No problem has an outcome."
        whole = {score.language: at for score in self.conditions[0].scores if (at := score.pass_at[str(k)]) is not None}
        if not self.verdicts:
            return f"pass@{k}: " + ", ".join(f"{name} {at.value:.1%}" for name, at in whole.items()) + "."
        values = _range([at.value for at in whole.values()], ".1f")
        words = f"The unmasked model has a pass@{k} of {values} percent by language. "
        changes = _range([one.target.value for one in self.verdicts])
        words += f"Removing a language's {self.unit}s changes its own by {changes}"
        others = [one.others_mean.value for one in self.verdicts if one.others_mean is not None]
        random = [one.random.value for one in self.verdicts if one.random is not None]
        words += f", the other languages' mean by {_range(others)}" if others else ""
        words += f", random controls by {_range(random)}" if random else ""
        passed = sum(one.passes for one in self.verdicts)
        words += (
            f" points. {passed} of {len(self.verdicts)} masks lower their own language most, and by more than chance "
            "explains."
        )
        return words

    def effects(self) -> Effects:
        """One row per mask: changes of pass@k in points.

        Raises:
            ConfigError: no mask of a language was scored.
        """
        if not self.verdicts:
            raise ConfigError("a result of `monet eval code` without verdicts has nothing to compare over seeds")
        rows = [
            Effect.of(
                one,
                one.target.times(100),
                None if one.others_mean is None else one.others_mean.times(100),
                (None if one.others_max is None else 100 * one.others_max, one.others_max_name),
                None if one.random is None else one.random.times(100),
            )
            for one in self.verdicts
        ]
        return Effects(
            f"Change of pass@{self.judged_k}",
            "points",
            self.provenance["bootstrap"]["confidence"],
            self.unit,
            {"problems": self.provenance["problems"]["languages"], "sampling": self.provenance["sampling"]},
            self.held_out,
            rows,
        )


def _range(values: list[float], form: str = "+.1f") -> str:
    low, high = (format(100 * end, form) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
