"""Rules on routing statistics: which experts belong to a label.

`Ratio` is the paper's rule for domains (arXiv 2412.04139, section 5.1 and appendix D.1). `Pearson` is its rule for
toxicity (section 5.3, appendix D.3). `Argmax` is its fallback for models whose experts pass no ratio. `Top` and
`MutualInformation` are ours. If several labels share an expert, ties included, no rule except `Pearson` assigns it to a
label: it is a generalist and is never removed. Take the statistics from text that is not used for evaluation.

docs/architecture.md explains the dims; C stands for labels.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from monet.errors import ConfigError, DataError
from monet.eval.attribution.stats import ExpertStatistics

NOBODY = -1
RuleName = Literal["ratio", "argmax", "pearson", "mutual_information", "top"]
RankedBy = Literal["ratio", "mutual_information", "pearson", "mean"]


@dataclass(frozen=True)
class Rule:
    """Chooses experts by label.

    Attributes:
        name: name of the rule on the command line.
        threshold_name: the number of the rule that a curve varies; empty if it has none.
        fixed_number: whether the rule's options fix how many experts it chooses.
    """

    name: ClassVar[str]
    threshold_name: ClassVar[str] = ""
    fixed_number: ClassVar[bool] = False

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        """The experts that belong to each label, (R, E, E) bool.

        Raises:
            DataError: the statistics lack what the rule needs, or have fewer than two labels to compare.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The rule's name and numbers, JSON-able."""
        return {
            "rule": self.name,
            **{key: value for key, value in dataclasses.asdict(self).items() if value is not None},
        }

    def counted(self, statistics: ExpertStatistics) -> dict[str, int]:
        """Number of experts that the rule could not judge, by reason."""
        return {}

    def found_in(self, permuted: ExpertStatistics, statistics: ExpertStatistics) -> dict[str, int]:
        """The number of experts that the rule finds for each label in statistics under permuted labels.

        These are the experts that it chooses there. A rule with a fixed number first takes the lowest rank that it
        chose under the true labels. It then counts the experts that reach this rank under permuted labels.

        Args:
            permuted: statistics under permuted labels.
            statistics: the same statistics under the true labels.
        """
        return {label: int(chosen_REE.sum()) for label, chosen_REE in self.chosen(permuted).items()}

    def at(self, threshold: float) -> Rule:
        """The same rule with another threshold.

        Raises:
            ConfigError: the rule has no threshold, or the number is out of range.
        """
        if not self.threshold_name:
            raise ConfigError(f"rule {self.name} has no threshold; curves take ratio, pearson, mutual_information, top")
        return dataclasses.replace(self, **{self.threshold_name: threshold})


@dataclass(frozen=True)
class Ratio(Rule):
    """Assign an expert to the label whose mean weight is at least `ratio` times that of any other label.

    An expert whose mean is zero for every label was never active and is not assigned. An expert that is active for only
    one label (second highest mean zero) is assigned to it at every ratio. An expert with two equal highest means is not
    assigned, which matters only at ratio 1.

    Args:
        ratio: at least 1; the paper's is 2.
    """

    name = "ratio"
    threshold_name = "ratio"
    ratio: float = 2.0

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        return _by_owner(statistics, assign(statistics.means(), self.ratio))


@dataclass(frozen=True)
class Argmax(Rule):
    """Assign an expert to the label in which it is most often the strongest of its group, as a share of tokens.

    An expert that is never the strongest, or is so equally often in two labels, is not assigned.
    """

    name = "argmax"

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        _check_labels(statistics)
        return _by_owner(statistics, highest(_firing(statistics, self.name).strongest_CREE / _tokens(statistics)))


@dataclass(frozen=True)
class Pearson(Rule):
    """Experts whose weight correlates with the score: r > threshold, with its sign.

    Experts with undefined r (weight or score never vary) are not chosen; `counted` gives their number.

    Args:
        threshold: from -1 to 1; the paper's are 0.2, 0.1 and 0.05.
        label: name of the mask.
    """

    name = "pearson"
    threshold_name = "threshold"
    threshold: float = 0.1
    label: str = "score"

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} of the correlation must be between -1 and 1")

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        return {self.label: statistics.correlations() > self.threshold}  # NaN is never greater

    def counted(self, statistics: ExpertStatistics) -> dict[str, int]:
        return {"undefined": int(statistics.correlations().isnan().sum())}


@dataclass(frozen=True)
class MutualInformation(Rule):
    """Assign an expert to the label on which its firing carries most mutual information.

    This is the mutual information of "active at a token" and "token of the label". Labels weigh equally, for any amount
    of text. Only labels in which the expert fires more often than in the others count. An expert with two equal highest
    values is not assigned.

    Args:
        threshold: smallest information in bits, above 0. With C labels it is at most the information of a share of 1/C,
            which is 0.65 bits for six labels.
    """

    name = "mutual_information"
    threshold_name = "threshold"
    threshold: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} bits must be above 0 and at most 1")

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        bits_CREE = mutual_information(statistics)
        owner_REE = highest(bits_CREE)
        owner_REE[bits_CREE.amax(0) < self.threshold] = NOBODY
        return _by_owner(statistics, owner_REE)


@dataclass(frozen=True)
class Top(Rule):
    """The strongest experts of each label, a given number or share of them.

    An expert can be chosen only for its own label. With `by` "ratio" or "mean" this is the label of its highest mean,
    with "mutual_information" the label of the most information. With "pearson" an expert needs r > 0 with the score.
    A label that has fewer experts gets fewer. Equal ranks are ordered by mean weight, then group, then expert id. A
    second mean of zero ranks before all ratios.

    Args:
        count: number of experts, in every group or in all.
        fraction: share of the experts of a group or of all, rounded down; in place of `count`.
        by: quantity that ranks the experts.
        per: "group" takes this number from every routing group, "all" from all groups together.
        label: name of the mask, for "pearson".
    """

    name = "top"
    threshold_name = "fraction"
    fixed_number = True
    count: int | None = None
    fraction: float | None = None
    by: RankedBy = "ratio"
    per: Literal["group", "all"] = "all"
    label: str | None = None

    def __post_init__(self) -> None:
        if (self.count is None) == (self.fraction is None):
            raise ConfigError("rule top takes either count or fraction; give one of them")
        if self.count is not None and self.count < 0:
            raise ConfigError(f"count {self.count} must be at least 0")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ConfigError(f"fraction {self.fraction} must be between 0 and 1")

    def at(self, threshold: float) -> Top:
        return dataclasses.replace(self, fraction=threshold, count=None)

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        return {label: self._first(*ranked) for label, ranked in self._ranked(statistics).items()}

    def found_in(self, permuted: ExpertStatistics, statistics: ExpertStatistics) -> dict[str, int]:
        under_permuted = self._ranked(permuted)
        found = {}
        for label, (rank_REE, means_REE) in self._ranked(statistics).items():
            taken_PN = self._pools(self._first(rank_REE, means_REE))
            rank_PN, permuted_PN = self._pools(rank_REE), self._pools(under_permuted[label][0])
            least_P = torch.where(taken_PN, rank_PN, torch.inf).amin(1)
            reached_PN = (permuted_PN >= least_P[:, None]) & taken_PN.any(1, keepdim=True)
            found[label] = int(reached_PN.sum())
        return found

    def _ranked(self, statistics: ExpertStatistics) -> dict[str, tuple[Tensor, Tensor]]:
        """By label, each expert's rank and its mean weight. A higher rank is stronger; experts of others have -inf."""
        if self.by == "pearson":
            rank_REE = statistics.correlations()
            rank_REE = torch.where(rank_REE > 0, rank_REE, -torch.inf)
            return {self.label or Pearson.label: (rank_REE, statistics.sums_CREE.sum(0))}
        means_CREE = statistics.means()
        if self.by == "mutual_information":
            strength_CREE = mutual_information(statistics)
            owner_REE, strength_REE = highest(strength_CREE), strength_CREE.amax(0)
        else:
            owner_REE, strength_REE = assign(means_CREE, 1.0), means_CREE.amax(0)
            if self.by == "ratio":
                strength_REE = strength_REE / means_CREE.topk(2, dim=0).values[1]
        return {
            label: (torch.where(owner_REE == index, strength_REE, -torch.inf), means_CREE[index])
            for index, label in enumerate(statistics.labels)
        }

    def _pools(self, of_REE: Tensor) -> Tensor:
        """(pools, experts of a pool): the experts of a pool compete for one number of places."""
        return of_REE.flatten(1) if self.per == "group" else of_REE.reshape(1, -1)

    def _first(self, rank_REE: Tensor, means_REE: Tensor) -> Tensor:
        """The highest ranked experts; -inf is never taken."""
        rank_PN, means_PN = self._pools(rank_REE), self._pools(means_REE)
        pool = rank_PN.shape[1]
        # In floating point, 0.29 * 100 is a little less than 29.
        number = self.count if self.fraction is None else math.floor(self.fraction * pool + 1e-6)
        taken_PN = torch.zeros_like(rank_PN, dtype=torch.bool)
        for rank_N, means_N, taken_N in zip(rank_PN, means_PN, taken_PN, strict=True):
            own_X = (rank_N > -torch.inf).nonzero().squeeze(1)  # all other experts need no order
            own_X = own_X[means_N[own_X].argsort(descending=True, stable=True)]
            own_X = own_X[rank_N[own_X].argsort(descending=True, stable=True)]
            taken_N[own_X[:number]] = True
        return taken_PN.view_as(rank_REE)


def rule_named(
    name: RuleName,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    count: int | None = None,
    fraction: float | None = None,
    by: RankedBy | None = None,
    per: Literal["group", "all"] | None = None,
    label: str | None = None,
) -> Rule:
    """The rule for a command's options. None means that the option was not given.

    Raises:
        ConfigError: the rule does not take an option, or an option is out of range.
    """
    kinds: dict[str, type[Rule]] = {kind.name: kind for kind in (Ratio, Argmax, Pearson, MutualInformation, Top)}
    options = {
        "ratio": ratio,
        "threshold": threshold,
        "count": count,
        "fraction": fraction,
        "by": by,
        "per": per,
        "label": label,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    takes = {field.name for field in dataclasses.fields(kinds[name])}
    if strangers := sorted(given.keys() - takes):
        raise ConfigError(
            f"rule {name} does not take {', '.join(strangers)}; it takes {', '.join(sorted(takes)) or 'no option'}"
        )
    return kinds[name](**given)


def check_ratio(ratio: float) -> None:
    """Refuse a ratio under which an expert could belong to two labels.

    Raises:
        ConfigError: `ratio` is not a finite number, or is below 1.
    """
    if not math.isfinite(ratio) or ratio < 1.0:
        raise ConfigError(f"ratio must be a finite number of at least 1 (the paper's is 2), got {ratio}")


def assign(means_CREE: Tensor, ratio: float = 2.0) -> Tensor:
    """The label to which every expert belongs by `Ratio`.

    Args:
        means_CREE: (labels, R, E, E), mean expert weight per token for each label, none negative.
        ratio: smallest ratio between an expert's highest and second highest mean.

    Returns:
        owner_REE, int64: index of the label, or -1 if the expert belongs to no label.

    Raises:
        ConfigError: `ratio` is below 1 or not finite.
        DataError: fewer than two labels, so there is nothing to compare.
    """
    check_ratio(ratio)
    if means_CREE.shape[0] < 2:
        raise DataError(
            f"selection compares labels and needs at least two, got {means_CREE.shape[0]}; "
            "collect statistics over text of two or more domains"
        )
    owner_REE = torch.empty(means_CREE.shape[1:], dtype=torch.int64)
    for group in range(means_CREE.shape[1]):
        top = means_CREE[:, group].topk(2, dim=0)
        first_EE, second_EE = top.values
        belongs_EE = (first_EE > second_EE) & (first_EE >= ratio * second_EE)
        owner_REE[group] = torch.where(belongs_EE, top.indices[0], NOBODY)
    return owner_REE


def mutual_information(statistics: ExpertStatistics) -> Tensor:
    """Mutual information of an expert's firing at a token and the token's label, in bits, (C, R, E, E) float64.

    With p = 1/C, and f the share of tokens at which the expert fires, in the label and on average in the others:
    `h(p f_label + (1 - p) f_others) - p h(f_label) - (1 - p) h(f_others)`, where h is the entropy of a yes or no. It is
    zero if the expert fires no more often in the label than in the others.

    Raises:
        DataError: the statistics lack firing counts, or have fewer than two labels.
    """
    _check_labels(statistics)
    return information(_firing(statistics, MutualInformation.name).fired_CREE / _tokens(statistics))


def information(rate_CX: Tensor) -> Tensor:
    """The formula of `mutual_information`, for any units.

    Args:
        rate_CX: (labels, ...) float64, the share of each label's tokens at which a unit fires; two labels or more.
    """
    labels = len(rate_CX)
    p = 1 / labels
    others_CX = (rate_CX.sum(0) - rate_CX).clamp(min=0.0) / (labels - 1)
    mean_CX = p * rate_CX + (1 - p) * others_CX
    bits_CX = _entropy(mean_CX) - p * _entropy(rate_CX) - (1 - p) * _entropy(others_CX)
    return torch.where(rate_CX > others_CX, bits_CX.clamp(min=0.0), 0.0)


def _entropy(share: Tensor) -> Tensor:
    """Entropy of a yes or no, in bits."""
    return -(torch.xlogy(share, share) + torch.special.xlog1py(1 - share, -share)) / math.log(2)


def highest(value_CREE: Tensor) -> Tensor:
    """Index of the label with the highest value above zero; -1 if there is no such label, or two."""
    top = value_CREE.topk(2, dim=0)
    return torch.where(top.values[0] > top.values[1].clamp(min=0.0), top.indices[0], NOBODY)


def _by_owner(statistics: ExpertStatistics, owner_REE: Tensor) -> dict[str, Tensor]:
    return {label: owner_REE == index for index, label in enumerate(statistics.labels)}


def _check_labels(statistics: ExpertStatistics) -> None:
    statistics.means()  # refuses labels without a token
    if len(statistics.labels) < 2:
        raise DataError(f"selection compares labels and needs at least two, got {len(statistics.labels)}")


def _tokens(statistics: ExpertStatistics) -> Tensor:
    return statistics.tokens_C[:, None, None, None].double()


def _firing(statistics: ExpertStatistics, rule: str) -> Any:
    if statistics.firing is None:
        raise DataError(f"rule {rule} needs firing counts; collect the statistics with `monet stats --firing`")
    return statistics.firing
