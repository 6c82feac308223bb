"""Which experts belong to a label: rules on routing statistics.

`Ratio` is the paper's rule for domains (arXiv 2412.04139, section 5.1 and appendix D.1), `Pearson` its rule for
toxicity (section 5.3, appendix D.3), `Argmax` what it falls back to for models whose experts pass no ratio. `Top` and
`MutualInformation` are ours. Of an expert that several labels share, ties included, each rule but `Pearson` makes
nobody's: it is a generalist and stays. Take the statistics from text that is not evaluated on.

Dims as in docs/architecture.md, C for labels.
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
        name: of the rule on the command line.
        threshold_name: its number that a curve varies; empty if it has none.
        fixed_number: the rule's options fix how many experts it chooses.
    """

    name: ClassVar[str]
    threshold_name: ClassVar[str] = ""
    fixed_number: ClassVar[bool] = False

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        """Per label the experts that belong to it, (R, E, E) bool.

        Raises:
            DataError: the statistics do not hold what the rule needs, or fewer than two labels to compare.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The rule's name and numbers; JSON-able."""
        return {
            "rule": self.name,
            **{key: value for key, value in dataclasses.asdict(self).items() if value is not None},
        }

    def counted(self, statistics: ExpertStatistics) -> dict[str, int]:
        """Experts that the rule could not judge, by reason."""
        return {}

    def found_in(self, permuted: ExpertStatistics, statistics: ExpertStatistics) -> dict[str, int]:
        """Per label the experts that the rule finds in statistics under permuted labels.

        These are the experts that it chooses there. A rule that always chooses a fixed number counts the experts whose
        rank there reaches the least rank among those that it chooses under the text's own labels.

        Args:
            permuted: under permuted labels.
            statistics: the same under the text's own labels.
        """
        return {label: int(chosen_REE.sum()) for label, chosen_REE in self.chosen(permuted).items()}

    def at(self, threshold: float) -> Rule:
        """The same rule with another threshold.

        Raises:
            ConfigError: it has none, or the number is out of range.
        """
        if not self.threshold_name:
            raise ConfigError(f"rule {self.name} has no threshold; curves take ratio, pearson, mutual_information, top")
        return dataclasses.replace(self, **{self.threshold_name: threshold})


@dataclass(frozen=True)
class Ratio(Rule):
    """The label whose mean weight is at least `ratio` times that of any other.

    An expert whose mean is zero for every label was never seen active and belongs to nobody; one that is active for a
    single label (second highest mean zero) belongs to it at every ratio; equal highest means belong to nobody, which
    matters only at ratio 1.

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
    """The label in which the expert is most often the strongest of its group, as a share of the label's tokens.

    One that is never the strongest, or in two labels equally often, belongs to nobody.
    """

    name = "argmax"

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        _check_labels(statistics)
        return _by_owner(statistics, _highest(_firing(statistics, self.name).strongest_CREE / _tokens(statistics)))


@dataclass(frozen=True)
class Pearson(Rule):
    """Experts whose weight correlates with the score: r > threshold, with its sign.

    Experts with undefined r (weight or score never vary) are not chosen; `counted` tells how many.

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
            raise ConfigError(f"threshold {self.threshold} of the correlation must lie between -1 and 1")

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        return {self.label: statistics.correlations() > self.threshold}  # NaN is never greater

    def counted(self, statistics: ExpertStatistics) -> dict[str, int]:
        return {"undefined": int(statistics.correlations().isnan().sum())}


@dataclass(frozen=True)
class MutualInformation(Rule):
    """The label that firing tells most about: mutual information of "active at a token" and "token of the label".

    Labels weigh equally, however much text they have. Only labels in which the expert fires more often than in the
    others count; equal highest ones belong to nobody.

    Args:
        threshold: least information in bits, above 0; with C labels at most that of a share of 1/C, 0.65 bits of six.
    """

    name = "mutual_information"
    threshold_name = "threshold"
    threshold: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold} bits must lie above 0 and be at most 1")

    def chosen(self, statistics: ExpertStatistics) -> dict[str, Tensor]:
        bits_CREE = mutual_information(statistics)
        owner_REE = _highest(bits_CREE)
        owner_REE[bits_CREE.amax(0) < self.threshold] = NOBODY
        return _by_owner(statistics, owner_REE)


@dataclass(frozen=True)
class Top(Rule):
    """The strongest experts of each label, a given number or share of them.

    Only an expert's own label can take it: that of the highest mean (`by` "ratio" or "mean"), of the most information
    ("mutual_information"), or, for scored text, the score with which r > 0 ("pearson"). Where a label owns fewer, it
    gets fewer. Equal ranks go by mean weight, then group, then expert id; a second mean of zero ranks before all
    ratios.

    Args:
        count: experts, in every group or in all.
        fraction: instead, share of the experts of a group or of all, rounded down.
        by: what ranks them.
        per: "group" takes so many of every routing group, "all" of all groups together.
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
            raise ConfigError("rule top takes either count or fraction")
        if self.count is not None and self.count < 0:
            raise ConfigError(f"count {self.count} must be at least 0")
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ConfigError(f"fraction {self.fraction} must lie between 0 and 1")

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
        """Per label each expert's rank, the highest first and -inf for those of others, and its mean weight."""
        if self.by == "pearson":
            rank_REE = statistics.correlations()
            rank_REE = torch.where(rank_REE > 0, rank_REE, -torch.inf)
            return {self.label or Pearson.label: (rank_REE, statistics.sums_CREE.sum(0))}
        means_CREE = statistics.means()
        if self.by == "mutual_information":
            strength_CREE = mutual_information(statistics)
            owner_REE, strength_REE = _highest(strength_CREE), strength_CREE.amax(0)
        else:
            owner_REE, strength_REE = assign(means_CREE, 1.0), means_CREE.amax(0)
            if self.by == "ratio":
                strength_REE = strength_REE / means_CREE.topk(2, dim=0).values[1]
        return {
            label: (torch.where(owner_REE == index, strength_REE, -torch.inf), means_CREE[index])
            for index, label in enumerate(statistics.labels)
        }

    def _pools(self, of_REE: Tensor) -> Tensor:
        """(pools, experts of a pool): those that compete for one number of places."""
        return of_REE.flatten(1) if self.per == "group" else of_REE.reshape(1, -1)

    def _first(self, rank_REE: Tensor, means_REE: Tensor) -> Tensor:
        """The highest ranked; -inf is never taken."""
        rank_PN, means_PN = self._pools(rank_REE), self._pools(means_REE)
        pool = rank_PN.shape[1]
        # 0.29 * 100 is a little less than 29
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
    """The rule of a command's options; None stands for an option that was not given.

    Raises:
        ConfigError: an option that the rule does not take, or out of its range.
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
        ConfigError: not a finite number, or below 1.
    """
    if not math.isfinite(ratio) or ratio < 1.0:
        raise ConfigError(f"ratio must be a finite number of at least 1 (the paper's is 2), got {ratio}")


def assign(means_CREE: Tensor, ratio: float = 2.0) -> Tensor:
    """Label that every expert belongs to by `Ratio`.

    Args:
        means_CREE: (labels, R, E, E), mean expert weight a token for each label, none negative.
        ratio: least ratio between an expert's highest and second highest mean.

    Returns:
        owner_REE, int64: index of the label, or -1 where the expert belongs to nobody.

    Raises:
        ConfigError: `ratio` below 1 or not finite.
        DataError: fewer than two labels; a single one has nothing to be compared with.
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
    """Bits that an expert's firing at a token tells about whether the token is of a label, (C, R, E, E) float64.

    With f the share of tokens at which it fires, in the label and, on the mean, in the others, and p = 1/C:
    `h(p f_label + (1 - p) f_others) - p h(f_label) - (1 - p) h(f_others)`, h the entropy of a yes or no. Zero where it
    fires no more often in the label than in the others.

    Raises:
        DataError: collected without firing counts, or fewer than two labels.
    """
    _check_labels(statistics)
    rate_CREE = _firing(statistics, MutualInformation.name).fired_CREE / _tokens(statistics)
    p = 1 / len(statistics.labels)
    others_CREE = (rate_CREE.sum(0) - rate_CREE).clamp(min=0.0) / (len(statistics.labels) - 1)
    mean_CREE = p * rate_CREE + (1 - p) * others_CREE
    bits_CREE = _entropy(mean_CREE) - p * _entropy(rate_CREE) - (1 - p) * _entropy(others_CREE)
    return torch.where(rate_CREE > others_CREE, bits_CREE.clamp(min=0.0), 0.0)


def _entropy(share: Tensor) -> Tensor:
    """Of a yes or no, in bits."""
    return -(torch.xlogy(share, share) + torch.special.xlog1py(1 - share, -share)) / math.log(2)


def _highest(value_CREE: Tensor) -> Tensor:
    """Index of the label with the highest value above zero; -1 where there is none, or two."""
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
