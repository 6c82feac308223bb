"""What removing categories' experts did to every category, as JSON and back, and as a report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monet.errors import CheckpointError
from monet.eval.document import Block, Heatmap, Report, Table, Text
from monet.eval.harness.accuracy import FEW, Denominator, estimate_from
from monet.eval.reporting.common import bracketed, signed
from monet.eval.results import Estimate

FORMAT = "monet-domains/1"


@dataclass(frozen=True)
class Category:
    """One category without a mask.

    Args:
        name: of the category.
        accuracy: share of its questions answered right, 0 to 1.
        denominator: what it was counted over.
    """

    name: str
    accuracy: Estimate
    denominator: Denominator


@dataclass(frozen=True)
class Removal:
    """What removing one category's experts did; all changes are of accuracy, 0 to 1, against no mask.

    Args:
        name: the category.
        experts, experts_per_group, share: experts removed, in all, per routing group, and of all experts.
        delta: change in every category, in the order of `DomainsResult.categories`.
        log_probability: change of the right option's log-probability among the options, nats, in the same order.
        random: `delta` under random masks of equal size, mean over seeds; None where that was not asked.
        target: change in its own category; None if that has no questions.
        others_mean: unweighted mean over the other categories.
        random_target: change in its own category under a random mask: mean over seeds, and an interval that holds the
            spread over seeds as well as over questions.
        random_per_seed: the changes that is the mean of.
    """

    name: str
    experts: int
    experts_per_group: list[int]
    share: float
    delta: list[Estimate]
    log_probability: list[Estimate]
    random: list[Estimate | None]
    target: Estimate | None
    others_mean: Estimate
    random_target: Estimate | None
    random_per_seed: list[float]

    @property
    def finding(self) -> str:
        """What can be said about it, in words."""
        if not self.experts:
            return "no expert belongs to it"
        if self.target is None or self.random_target is None:
            return "no questions"
        if self.target.value >= self.others_mean.value:
            return "loses no more than the others"
        if self.target.high >= self.random_target.low:
            return "within the interval of random masks"
        return "loses more than the others and than random masks"


@dataclass(frozen=True)
class DomainsResult:
    """The matrix of removed and asked categories.

    Args:
        categories: that were asked, in the order of the columns.
        without_questions: categories that could not be asked.
        without_masks: categories whose experts could not be told; empty where masks were given.
        removals: one a mask.
        metric: "acc_norm" or "acc".
        provenance: model, masks, data, settings, versions, date.
    """

    categories: list[Category]
    without_questions: list[str]
    without_masks: list[str]
    removals: list[Removal]
    metric: str
    provenance: dict[str, Any]

    @property
    def partial(self) -> bool:
        """Something that should have been asked has no score."""
        left_out = bool(self.without_questions or self.without_masks)
        return left_out or any(category.denominator.partial for category in self.categories)

    @property
    def sentence(self) -> str:
        """How many categories lose more than the others and than random masks, in words."""
        judged = [one for one in self.removals if one.target is not None]
        found = sum(one.finding.startswith("loses more") for one in judged)
        words = (
            f"{found} of {len(self.removals)} categories lose more accuracy than the others and than under random "
            "masks when their experts are removed"
        )
        if judged:
            target = 100 * sum(one.target.value for one in judged if one.target) / len(judged)
            others = 100 * sum(one.others_mean.value for one in judged) / len(judged)
            words += (
                f"; on average {signed(target, 2)} points in the category itself, {signed(others, 2)} in the others"
            )
        if limit := self.provenance.get("limit"):
            words += f" (at most {limit} questions a subject)"
        return words + (" (partial: some categories or questions are left out)" if self.partial else "")

    @property
    def counts(self) -> str:
        """Questions scored, of how many rows, a line a category."""
        lines = [f"{category.name}: {category.denominator.words}" for category in self.categories]
        lines += [f"{name}: no question" for name in self.without_questions]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        content = {"format": FORMAT, "partial": self.partial, **dataclasses.asdict(self)}
        return json.loads(json.dumps(content, allow_nan=False))

    @classmethod
    def from_json(cls, content: Any) -> DomainsResult:
        """Build a result from what `to_json` gave.

        Raises:
            CheckpointError: not the layout of this version.
        """
        try:
            if content["format"] != FORMAT:
                raise CheckpointError(f"format {content['format']!r} where {FORMAT!r} is read")
            return cls(
                categories=[
                    Category(one["name"], Estimate(**one["accuracy"]), Denominator(**one["denominator"]))
                    for one in content["categories"]
                ],
                without_questions=content["without_questions"],
                without_masks=content["without_masks"],
                removals=[_removal(one) for one in content["removals"]],
                metric=content["metric"],
                provenance=content["provenance"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"no result of a removal of MMLU's categories ({error!r}); write one with `monet eval domains`"
            ) from None

    def report(self) -> Report:
        """The paper's Tables 11 and 9, a heat map, and what was counted."""
        blocks: list[Block] = [self._matrix(), self._verdicts(), self._table_11(), self._table_9(), self._surer()]
        blocks.append(self._questions())
        if left_out := [*self.without_questions, *(name for name in self.without_masks)]:
            blocks.append(Text(f"Left out for want of questions: {', '.join(dict.fromkeys(left_out))}.", "Not judged"))
        blocks.append(Text(self._how(), "How it was measured"))
        return Report("MMLU's categories and their experts", self.sentence, blocks, self.provenance, self.to_json())

    def _matrix(self) -> Heatmap:
        return Heatmap(
            "Change of accuracy after removing a category's experts",
            [one.name for one in self.removals],
            [category.name for category in self.categories],
            [[100 * cell.value for cell in one.delta] for one in self.removals],
            "points of accuracy",
            row_axis="experts removed of",
            column_axis="questions of",
            note="In bold is the category whose experts are removed.",
        )

    def _surer(self) -> Heatmap:
        return Heatmap(
            "Change of the right option's log-probability among the options",
            [one.name for one in self.removals],
            [category.name for category in self.categories],
            [[cell.value for cell in one.log_probability] for one in self.removals],
            "nats",
            row_axis="experts removed of",
            column_axis="questions of",
            note="It moves with every change of the model, where accuracy only moves when another option comes first.",
        )

    def _verdicts(self) -> Table:
        rows = [
            [
                one.name,
                f"{one.experts:,}",
                f"{one.share:.2%}",
                _interval(one.target),
                _interval(one.others_mean),
                _interval(one.random_target),
                one.finding,
            ]
            for one in self.removals
        ]
        return Table(
            "Target, others and random masks (points of accuracy)",
            ["", "experts", "share", "target", "others, mean", "random, on target", "finding"],
            rows,
            "In brackets the bootstrap interval over questions. Random masks remove as many experts of every routing "
            f"group; their interval holds the spread over masks, too. {FEW}",
        )

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
            "Accuracy by category (percent) after removing the experts of the column's category",
            ["", "no mask", *names],
            rows,
            "The layout of the paper's Table 11.",
        )

    def _table_9(self) -> Table:
        groups = max((len(one.experts_per_group) for one in self.removals), default=0)
        rows = [
            [f"group {group + 1}", *(f"{one.experts_per_group[group]:,}" for one in self.removals)]
            for group in range(groups)
        ]
        rows.append(["total", *(f"{one.experts:,}" for one in self.removals)])
        rows.append(["share", *(f"{one.share:.2%}" for one in self.removals)])
        return Table(
            "Experts of each category by routing group",
            ["", *(one.name for one in self.removals)],
            rows,
            "The layout of the paper's Table 9. Groups are counted from 1, as there.",
        )

    def _questions(self) -> Table:
        rows = [
            [
                category.name,
                f"{one.rows:,}",
                f"{one.asked:,}",
                f"{one.scored:,}",
                f"{one.cut:,}",
                f"{category.accuracy.value:.3f} [{category.accuracy.low:.3f}, {category.accuracy.high:.3f}]",
                one.faults or "nothing",
            ]
            for category in self.categories
            for one in [category.denominator]
        ]
        return Table(
            "Questions",
            ["", "rows", "asked", "scored", "prompt cut", "accuracy, no mask", "left out"],
            rows,
            "Asked are fewer than rows under a limit. A cut prompt was longer than the model's context and lost its "
            "beginning.",
        )

    def _how(self) -> str:
        found: Mapping[str, Any] = self.provenance.get("identification") or {}
        if not found:
            chosen = "The masks were given."
        else:
            where = (
                "other questions than are asked"
                if found["identify_on"] == "held_out"
                else "the same questions that are asked"
            )
            cut = f", of which {found['texts_cut']} were cut at the context" if found["texts_cut"] else ""
            chosen = (
                f"An expert belongs to a category when its mean weight over the tokens of the category's questions and "
                f"options is at least {found['ratio']:g} times its mean in any other. It was measured on {where} "
                f"({found['texts']:,} questions, {found['tokens']:,} tokens, splits {', '.join(found['splits'])}"
                f"{cut})."
            )
        return (
            f"{chosen} Questions are put as lm-evaluation-harness puts MMLU, in {self.provenance.get('style')} style, "
            f"{self.provenance.get('shots')}-shot. Intervals draw each category's questions again, the same for all "
            "masks."
        )


def _removal(content: Mapping[str, Any]) -> Removal:
    return Removal(
        **{
            **content,
            "delta": [Estimate(**cell) for cell in content["delta"]],
            "log_probability": [Estimate(**cell) for cell in content["log_probability"]],
            "random": [estimate_from(cell) for cell in content["random"]],
            "target": estimate_from(content["target"]),
            "others_mean": Estimate(**content["others_mean"]),
            "random_target": estimate_from(content["random_target"]),
        }
    )


def _points(found: Estimate | None) -> str:
    return "not asked" if found is None else signed(100 * found.value, 2)


def _interval(found: Estimate | None) -> str:
    if found is None:
        return "not asked"
    return bracketed(100 * found.value, 100 * found.low, 100 * found.high, 2)
