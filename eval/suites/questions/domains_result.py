"""The result of removing the experts (or other units) of categories: the effect on every category, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from monet.errors import ConfigError
from monet.eval.choices.texts import ORIGIN
from monet.eval.core.document import Block, Heatmap, Report, Table, Text
from monet.eval.core.effects import Effect, Effects, lowest
from monet.eval.core.estimate import Estimate
from monet.eval.core.results import Result
from monet.eval.reporting.common import bracketed, signed
from monet.eval.reporting.wording import HOW_JUDGED, control_blocks, random_units
from monet.eval.suites.questions.accuracy import Denominator, caution_on_few


@dataclass(frozen=True)
class Category:
    """One category without a mask.

    Args:
        name: name of the category.
        accuracy: share of its questions that are answered right, 0 to 1.
        denominator: the counts behind the accuracy.
    """

    name: str
    accuracy: Estimate
    denominator: Denominator


@dataclass(frozen=True)
class Removal:
    """The effect of removing one category's units; every change is one of accuracy, 0 to 1, against no mask.

    Args:
        name: the category.
        removed, removed_per_group, share: number of removed units in all and by group, and their share of all units.
        delta: change in every category, in the order of `DomainsResult.categories`.
        log_probability: change in the right option's log-probability among the options, nats, in the same order.
        random: `delta` under the random controls, averaged over the controls; None where the controls were not asked.
        target: change in its own category; None if the category has no questions.
        others_mean: unweighted mean over the other categories.
        random_target: change in its own category under a single control: the mean over the controls, with an interval
            that holds the spread over controls as well as over questions.
        random_per_control: the changes that `random_target` averages.
        controls, p, q: number of controls, the probability that a control costs as much accuracy in the category, and
            the false discovery rate over all masks; see `monet.eval.core.chance`.
        passes: whether the mask passes; see `monet.eval.core.chance.reasons_against`.
        reason: why the mask does not pass; empty if it does.
        above_mean_of_others: the weaker criterion that the paper's numbers suggest: the mask's own category loses more
            than the others on average, and more than chance explains.
    """

    name: str
    removed: int
    removed_per_group: list[int]
    share: float
    delta: list[Estimate]
    log_probability: list[Estimate]
    random: list[Estimate | None]
    target: Estimate | None
    others_mean: Estimate
    random_target: Estimate | None
    random_per_control: list[float]
    controls: int
    p: float
    q: float
    passes: bool
    reason: str
    above_mean_of_others: bool


@dataclass(frozen=True)
class DomainsResult(Result):
    """Changes of accuracy for every pair of a removed and an asked category.

    Args:
        unit, group: the removed unit ("expert", "neuron"), and the group that units are counted by.
        categories: categories that were asked, in the order of the columns.
        without_questions: categories that could not be asked.
        without_masks: categories for which no experts were found; empty if masks were given.
        removals: one per mask.
        metric: "acc_norm" or "acc".
        provenance: model, masks, data, settings, versions, date.
    """

    FORMAT: ClassVar[str] = "monet-domains/2"
    COMMAND: ClassVar[str] = "monet eval domains"
    TOLD: ClassVar[tuple[str, ...]] = ("partial", "sentence")

    unit: str
    group: str
    categories: list[Category]
    without_questions: list[str]
    without_masks: list[str]
    removals: list[Removal]
    metric: str
    provenance: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Whether something that should have been asked has no score."""
        left_out = bool(self.without_questions or self.without_masks)
        return left_out or any(category.denominator.partial for category in self.categories)

    @property
    def passes(self) -> bool:
        """Whether every category's mask passes."""
        return all(one.passes for one in self.removals)

    @property
    def sentence(self) -> str:
        """A sentence that says how many masks pass."""
        judged = [one for one in self.removals if one.target is not None]
        passed = sum(one.passes for one in self.removals)
        above = sum(one.above_mean_of_others for one in self.removals)
        words = (
            f"{passed} of {len(self.removals)} masks reduce accuracy in their own category more than in every other, "
            f"and more than chance explains; {above} reduce it more than in the others on average, and more than "
            "chance explains"
        )
        if judged:
            target = 100 * sum(one.target.value for one in judged if one.target) / len(judged)
            others = 100 * sum(one.others_mean.value for one in judged) / len(judged)
            words += (
                f"; on average {signed(target, 2)} points in the category itself, {signed(others, 2)} in the others"
            )
        if limit := self.provenance.get("limit"):
            words += f" (at most {limit} questions per subject)"
        return words + (" (partial: some categories or questions are left out)" if self.partial else "")

    def lines(self) -> list[str]:
        """What a command prints of its result, with the numbers of questions."""
        return [*super().lines(), self.counts]

    @property
    def counts(self) -> str:
        """Scored questions and rows, one line per category."""
        lines = [f"{category.name}: {category.denominator.words}" for category in self.categories]
        lines += [f"{name}: no questions" for name in self.without_questions]
        return "\n".join(lines)

    def report(self) -> Report:
        """The paper's Tables 11 and 9, a heat map, and the counts."""
        held_out = self.provenance["held_out"]
        blocks: list[Block] = [Text(ORIGIN[held_out], caution=held_out is not True)]
        if caution := caution_on_few(category.denominator for category in self.categories):
            blocks.append(Text(caution, caution=True))
        blocks += [self._matrix(), self._verdicts(), self._table_11(), self._table_9(), self._surer()]
        blocks += [self._questions(), *control_blocks(self.provenance)]
        if left_out := [*self.without_questions, *(name for name in self.without_masks)]:
            blocks.append(
                Text(f"Left out because they have no questions: {', '.join(dict.fromkeys(left_out))}.", "Not judged")
            )
        blocks.append(Text(self._how(), "How it was measured"))
        return Report(
            f"MMLU's categories and their {self.unit}s", self.sentence, blocks, self.provenance, self.to_json()
        )

    def effects(self) -> Effects:
        """One row per mask whose category was asked; values are changes of accuracy in points.

        Raises:
            ConfigError: there is no such mask.
        """
        names = [category.name for category in self.categories]
        rows = []
        for one in self.removals:
            if one.target is None:
                continue
            points = {name: 100 * cell.value for name, cell in zip(names, one.delta, strict=True)}
            random = None if one.random_target is None else one.random_target.times(100)
            rows.append(
                Effect.of(one, one.target.times(100), one.others_mean.times(100), lowest(points, one.name), random)
            )
        if not rows:
            raise ConfigError("a result of `monet eval domains` without judged masks has nothing to compare over seeds")
        told = self.provenance
        return Effects(
            "Change of accuracy",
            "points",
            told["bootstrap"]["confidence"],
            self.unit,
            {key: told[key] for key in ("data", "shots", "style", "metric")},
            told["held_out"],
            rows,
        )

    def _matrix(self) -> Heatmap:
        return Heatmap(
            f"Change of accuracy after removing a category's {self.unit}s",
            [one.name for one in self.removals],
            [category.name for category in self.categories],
            [[100 * cell.value for cell in one.delta] for one in self.removals],
            "points of accuracy",
            row_axis=f"{self.unit}s removed of",
            column_axis="questions of",
            note=f"The category whose {self.unit}s are removed is in bold.",
        )

    def _surer(self) -> Heatmap:
        return Heatmap(
            "Change of the right option's log-probability among the options",
            [one.name for one in self.removals],
            [category.name for category in self.categories],
            [[cell.value for cell in one.log_probability] for one in self.removals],
            "nats",
            row_axis=f"{self.unit}s removed of",
            column_axis="questions of",
            note="This value moves with every change of the model; accuracy moves only if the likeliest option "
            "changes.",
        )

    def _verdicts(self) -> Table:
        rows = [
            [
                one.name,
                f"{one.removed:,} ({one.share:.2%})",
                _interval(one.target),
                _interval(one.others_mean),
                _interval(one.random_target),
                str(one.controls),
                f"{one.p:.3g}",
                f"{one.q:.3g}",
                "yes" if one.above_mean_of_others else "no",
                "yes" if one.passes else f"no: {one.reason}",
            ]
            for one in self.removals
        ]
        return Table(
            "Verdicts (changes in points of accuracy)",
            ["", f"{self.unit}s", "target", "others, mean", "random, on target", "controls", "p", "q",
             "above mean of others", "passes"],
            rows,
            f"Brackets hold the bootstrap interval over questions. {HOW_JUDGED} The column about the mean of the "
            "others is a weaker criterion: the category itself loses more than the others on average, and more than "
            f"chance explains. {random_units(self.provenance['controls'], f'{self.unit}s')} are removed as controls. "
            "Their interval is that of one control: it includes the spread over controls.",
        )  # fmt: skip

    def _table_11(self) -> Table:
        names = [one.name for one in self.removals]
        rows = []
        for place, category in enumerate(self.categories):
            base = category.accuracy.value
            after = [f"{100 * (base + one.delta[place].value):.2f}" for one in self.removals]
            rows.append([category.name, f"{100 * base:.2f}", *after])
        rows.append(["change, target", "", *(_points(one.target) for one in self.removals)])
        rows.append(["change, others", "", *(_points(one.others_mean) for one in self.removals)])
        return Table(
            f"Accuracy by category (percent) after removing the {self.unit}s of the column's category",
            ["", "no mask", *names],
            rows,
            "The layout of the paper's Table 11.",
        )

    def _table_9(self) -> Table:
        groups = max((len(one.removed_per_group) for one in self.removals), default=0)
        name = self.group.removeprefix("routing ")
        rows = [
            [f"{name} {number + 1}", *(f"{one.removed_per_group[number]:,}" for one in self.removals)]
            for number in range(groups)
        ]
        rows.append(["total", *(f"{one.removed:,}" for one in self.removals)])
        rows.append(["share", *(f"{one.share:.2%}" for one in self.removals)])
        return Table(
            f"{self.unit.capitalize()}s of each category by {self.group}",
            ["", *(one.name for one in self.removals)],
            rows,
            f"The layout of the paper's Table 9. Each {name} is numbered from 1, as in the paper.",
        )

    def _questions(self) -> Table:
        rows = [
            [
                category.name,
                f"{one.rows:,}",
                f"{one.asked:,}",
                f"{one.scored:,}",
                f"{one.cut:,}",
                "{:.3f} [{:.3f}, {:.3f}]".format(category.accuracy.value, *category.accuracy.ends),
                one.faults or "nothing",
            ]
            for category in self.categories
            for one in [category.denominator]
        ]
        return Table(
            "Questions",
            ["", "rows", "asked", "scored", "prompt cut", "accuracy, no mask", "left out"],
            rows,
            "With a limit, fewer questions are asked than there are rows. A cut prompt was longer than the model's "
            "context and lost its beginning.",
        )

    def _how(self) -> str:
        found: Mapping[str, Any] = self.provenance.get("identification") or {}
        if not found:
            chosen = "The masks were given."
        else:
            where = (
                "held-out questions, not those that are asked"
                if found["identify_on"] == "held_out"
                else "the same questions that are asked"
            )
            cut = f", of which {found['texts_cut']} were cut to fit the context" if found["texts_cut"] else ""
            left_out = ", ".join(f"{number} {reason}" for reason, number in found["left_out"].items())
            chosen = (
                "An expert belongs to a category if its mean weight over the tokens of the category's questions and "
                f"options is at least {found['ratio']:g} times its mean in any other. The means were measured on "
                f"{where} ({found['texts']:,} questions, {found['tokens']:,} tokens, splits "
                f"{', '.join(found['splits'])}{cut}{f'; left out: {left_out}' if left_out else ''})."
            )
        return (
            f"{chosen} Questions are put as lm-evaluation-harness puts MMLU, in {self.provenance.get('style')} style, "
            f"{self.provenance.get('shots')}-shot. The bootstrap resamples each category's questions, the same ones "
            "for all masks."
        )


def _points(found: Estimate | None) -> str:
    return "not asked" if found is None else signed(100 * found.value, 2)


def _interval(found: Estimate | None) -> str:
    if found is None:
        return "not asked"
    low, high = found.ends
    return bracketed(100 * found.value, 100 * low, 100 * high, 2)
