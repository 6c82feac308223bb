"""Each rule against a loop over experts in plain Python, and edge cases: ties, zeros, nothing to compare."""

import itertools
import math

import pytest
import torch

from monet.errors import ConfigError, DataError
from monet.eval.attribution.rules import (
    Argmax,
    MutualInformation,
    Pearson,
    Ratio,
    Top,
    mutual_information,
    rule_named,
)
from monet.eval.attribution.selection import load_masks, save_masks, select, select_by, summarise
from monet.eval.attribution.statistics.extras import Firing, ScoreMoments
from monet.eval.attribution.stats import ExpertStatistics, Wanted, collect
from tests.eval.conftest import LABELS

R, E = 2, 4
EXPERTS = list(itertools.product(range(R), range(E), range(E)))


@pytest.fixture
def statistics() -> ExpertStatistics:
    """Random numbers with some zeros and ties."""
    generator = torch.Generator().manual_seed(0)
    tokens_C = torch.tensor([50, 80, 200])
    fired_CREE = (torch.rand(3, R, E, E, generator=generator) * tokens_C.view(3, 1, 1, 1)).long()
    fired_CREE[:, 0, 0] = 0
    fired_CREE[:2, 0, 1], fired_CREE[2, 0, 1] = 0, 9
    strongest_CREE = fired_CREE // 3
    sums_CREE = fired_CREE.double() * torch.rand(3, R, E, E, generator=generator, dtype=torch.float64)
    means = sums_CREE / tokens_C.view(3, 1, 1, 1)
    means[1, 1, 0] = means[0, 1, 0]  # equal means
    strongest_CREE[0, 1, 1], strongest_CREE[1, 1, 1], strongest_CREE[2, 1, 1] = 5, 8, 0  # a tenth of the tokens in both
    return ExpertStatistics(
        labels=LABELS,
        sums_CREE=means * tokens_C.view(3, 1, 1, 1),
        tokens_C=tokens_C,
        windows_C=torch.ones_like(tokens_C),
        documents_C=torch.ones_like(tokens_C),
        model_fingerprint="f" * 32,
        provenance={"parts": []},
        firing=Firing(fired_CREE, strongest_CREE),
    )


def scored(statistics: ExpertStatistics, r_REE: torch.Tensor) -> ExpertStatistics:
    """Statistics of 100 tokens whose weights and score have mean 0.5, variance 1 and these correlations."""
    n = torch.tensor(100)
    square = torch.tensor(125.0, dtype=torch.float64)
    moments = ScoreMoments(
        tokens=n, score_sum=square * 0.4, score_squares=square, score_min=-square, score_max=square,
        weight_scores_REE=25 + 100 * r_REE.double(), weight_squares_REE=torch.full_like(r_REE, 125.0).double(),
    )  # fmt: skip
    return ExpertStatistics(
        ["a"], torch.full((1, *r_REE.shape), 50.0, dtype=torch.float64), n[None], n[None], n[None], "f" * 32,
        {"parts": []}, scores=moments,
    )  # fmt: skip


def owners(chosen: dict[str, torch.Tensor]) -> dict[tuple[int, int, int], list[str]]:
    return {place: [label for label, chosen_REE in chosen.items() if chosen_REE[place]] for place in EXPERTS}


def unique_highest(values: list[float]) -> list[str]:
    best = max(values)
    return [LABELS[values.index(best)]] if best > 0 and values.count(best) == 1 else []


def test_argmax_is_the_label_in_which_it_is_most_often_the_strongest(statistics):
    shares = statistics.firing.strongest_CREE / statistics.tokens_C.view(3, 1, 1, 1).double()
    found = owners(Argmax().chosen(statistics))
    for place in EXPERTS:
        assert found[place] == unique_highest([float(shares[(c, *place)]) for c in range(3)])
    assert found[0, 0, 0] == [] == found[1, 1, 2], "never the strongest, and in two labels equally often"
    assert found[0, 1, 3] == ["right"]


def information(rates: list[float], label: int) -> float:
    """Mutual information of two yes-or-no variables, from their joint table."""
    p = 1 / len(rates)
    others = sum(rate for c, rate in enumerate(rates) if c != label) / (len(rates) - 1)
    joint = {(1, 1): p * rates[label], (0, 1): p * (1 - rates[label])}
    joint |= {(1, 0): (1 - p) * others, (0, 0): (1 - p) * (1 - others)}
    bits = 0.0
    for (fires, of_label), share in joint.items():
        if share > 0:
            alone = sum(joint[fires, c] for c in (0, 1)) * sum(joint[f, of_label] for f in (0, 1))
            bits += share * math.log2(share / alone)
    return bits if rates[label] > others else 0.0


def test_mutual_information_is_that_of_the_joint_table(statistics):
    bits_CREE = mutual_information(statistics)
    rates_CREE = statistics.firing.fired_CREE / statistics.tokens_C.view(3, 1, 1, 1).double()
    chosen = owners(MutualInformation(0.02).chosen(statistics))
    some = 0
    for place in EXPERTS:
        rates = [float(rates_CREE[(c, *place)]) for c in range(3)]
        wanted = [information(rates, c) for c in range(3)]
        assert [float(bits_CREE[(c, *place)]) for c in range(3)] == pytest.approx(wanted, abs=1e-12)
        assert chosen[place] == (unique_highest(wanted) if max(wanted) >= 0.02 else [])
        some += len(chosen[place])
    assert 0 < some < len(EXPERTS)
    assert chosen[0, 0, 0] == [], "never active carries no information"


def test_firing_that_names_the_label_tells_all_about_it(statistics):
    statistics.firing.fired_CREE[:] = torch.tensor([0, 80, 0]).view(3, 1, 1, 1)
    bits_CREE = mutual_information(statistics)
    third = 1 / 3
    assert bits_CREE[1].flatten().tolist() == pytest.approx(
        [-third * math.log2(third) - (1 - third) * math.log2(1 - third)] * 2 * E * E
    )
    assert (bits_CREE[[0, 2]] == 0).all()


def test_pearson_is_signed_strict_and_never_takes_nan(statistics):
    r = torch.tensor([[0.3, 0.1, -0.9], [0.05, 0.0, 0.2], [0.1000001, -0.1, 0.99]], dtype=torch.float64)[None]
    with_scores = scored(statistics, r)
    assert torch.allclose(with_scores.correlations(), r, atol=1e-12)
    exact = with_scores.correlations()[0, 0, 1].item()
    assert Pearson(exact).chosen(with_scores)["score"].int().tolist() == [[[1, 0, 0], [0, 0, 1], [1, 0, 1]]]
    assert Pearson(-0.05, label="x").chosen(with_scores)["x"].int().tolist() == [[[1, 1, 0], [1, 1, 1], [1, 0, 1]]]
    with_scores.scores.weight_squares_REE[0, 0, 0] = 25.0  # 100 tokens of weight 0.5: no variance
    assert not Pearson(-1.0).chosen(with_scores)["score"][0, 0, 0]
    assert Pearson().counted(with_scores) == {"undefined": 1}


def ranked(statistics, label: int, by: str) -> list[tuple[int, int, int]]:
    """The label's experts, best first."""
    means = statistics.means()
    bits = mutual_information(statistics)
    found = []
    for place in EXPERTS:
        values = [float((bits if by == "mutual_information" else means)[(c, *place)]) for c in range(3)]
        if unique_highest(values) == [LABELS[label]]:
            second = sorted(values)[-2]
            strength = values[label] if by != "ratio" else (values[label] / second if second else math.inf)
            found.append((-strength, -float(means[(label, *place)]), place))
    return [place for *_, place in sorted(found)]


@pytest.mark.parametrize("by", ["ratio", "mutual_information", "mean"])
@pytest.mark.parametrize("per", ["group", "all"])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_top_takes_the_first_of_its_ranking(statistics, by, per, count):
    chosen = Top(count=count, by=by, per=per).chosen(statistics)
    for label, name in enumerate(LABELS):
        order = ranked(statistics, label, by)
        if per == "group":
            wanted = {place for g in range(R) for place in [p for p in order if p[0] == g][:count]}
        else:
            wanted = set(order[:count])
        assert {place for place in EXPERTS if chosen[name][place]} == wanted
    taken = torch.stack(list(chosen.values())).sum(0)
    assert taken.max() <= 1


def test_top_by_ratio_puts_zero_seconds_first_and_breaks_ties_by_mean_then_place(statistics):
    sums = torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    sums[0, 0] = torch.tensor([[4.0, 1.0, 2.0], [8.0, 9.0, 1.0], [8.0, 0.0, 2.0]])
    sums[1, 0] = torch.tensor([[2.0, 0.0, 0.0], [4.0, 4.5, 0.0], [4.0, 0.0, 2.0]])
    ones = torch.ones(2, dtype=torch.int64)
    given = ExpertStatistics(["a", "b"], sums, ones, ones, ones, "f" * 32, {"parts": []})
    order = [(0, 2), (0, 1), (1, 2), (1, 1), (1, 0), (2, 0), (0, 0)]
    for count in range(9):
        chosen = Top(count=count).chosen(given)["a"][0]
        assert {tuple(place) for place in chosen.nonzero().tolist()} == set(order[:count])


@pytest.mark.parametrize(
    ("fraction", "per", "number"), [(0.25, "all", 8), (0.26, "all", 8), (0.25, "group", 8), (0.3, "group", 8),
                                    (0.0, "all", 0), (1.0, "group", 32), (0.29, "all", 9)]
)  # fmt: skip
def test_a_fraction_is_of_the_group_or_of_all(statistics, fraction, per, number):
    r = torch.linspace(0.1, 0.9, R * E * E, dtype=torch.float64).view(R, E, E)
    chosen = Top(fraction=fraction, by="pearson", per=per).chosen(scored(statistics, r))["score"]
    assert int(chosen.sum()) == number
    if per == "group":
        assert chosen[0].sum() == chosen[1].sum()


def test_a_fraction_is_not_rounded_below_a_whole_number(statistics):
    assert 0.29 * 100 < 29
    r = torch.linspace(0.1, 0.9, 100, dtype=torch.float64).view(1, 10, 10)
    assert int(Top(fraction=0.29, by="pearson").chosen(scored(statistics, r))["score"].sum()) == 29


def test_top_by_pearson_takes_positive_correlations_only(statistics):
    r = torch.tensor([[0.3, -0.8], [0.0, 0.1]], dtype=torch.float64)[None]
    chosen = Top(count=4, by="pearson", label="x").chosen(scored(statistics, r))
    assert list(chosen) == ["x"] and chosen["x"].int().tolist() == [[[1, 0], [0, 1]]]


@pytest.mark.parametrize(
    ("rule", "thresholds"),
    [(Ratio(), [1.0, 1.2, 2.0, 9.0]), (MutualInformation(), [1e-4, 0.01, 0.05]),
     (Top(fraction=0.1), [0.3, 0.2, 0.1, 0.0]), (Top(count=1, by="mean", per="group"), [0.5, 0.1])],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_stricter_thresholds_choose_subsets(statistics, rule, thresholds):
    choices = [rule.at(threshold).chosen(statistics) for threshold in thresholds]
    for wider, narrower in itertools.pairwise(choices):
        for label in LABELS:
            assert not (narrower[label] & ~wider[label]).any()
    assert sum(int(c.sum()) for c in choices[0].values()) > sum(int(c.sum()) for c in choices[-1].values())


def test_a_keep_weight_attenuates_the_chosen(statistics):
    hard, soft = select(statistics), select(statistics, keep=0.25)
    for label in LABELS:
        assert hard[label].is_hard and not soft[label].is_hard
        assert torch.equal(soft[label].keep_REE < 1, ~hard[label].keep_REE)
        assert set(soft[label].keep_REE.unique().tolist()) <= {0.25, 1.0}
        assert soft[label].provenance["keep"] == 0.25 and "keep" not in hard[label].provenance
    with pytest.raises(ConfigError, match=r"keep 1\.0"):
        select(statistics, keep=1.0)


def test_a_summary_tells_the_rule_and_counts_shared_experts_once(statistics, tmp_path):
    r = torch.linspace(-1, 1, R * E * E, dtype=torch.float64).view(R, E, E)
    with_scores = scored(statistics, r)
    masks = {**select_by(with_scores, Pearson(0.5, "high")), **select_by(with_scores, Pearson(0.0, "some"), keep=0.5)}
    summary = summarise(with_scores, masks, Pearson(0.5, "high"))
    assert summary["rule"] == "pearson" and summary["threshold"] == 0.5 and summary["undefined"] == 0
    assert summary["generalists"] == 16 and summary["labels"]["high"]["experts"] == 8
    assert summary["labels"]["some"]["tokens"] == 100
    save_masks(tmp_path / "m", masks, summary)
    assert load_masks(tmp_path / "m") == masks


@pytest.mark.parametrize(
    ("act", "kind", "match"),
    [
        (lambda: Pearson(1.5), ConfigError, r"threshold 1\.5 .* between -1 and 1"),
        (lambda: Pearson(float("nan")), ConfigError, "threshold nan"),
        (lambda: MutualInformation(0.0), ConfigError, r"threshold 0\.0 bits"),
        (lambda: Top(), ConfigError, "either count or fraction"),
        (lambda: Top(count=1, fraction=0.5), ConfigError, "either count or fraction"),
        (lambda: Top(count=-1), ConfigError, "count -1"),
        (lambda: Top(fraction=1.01), ConfigError, r"fraction 1\.01"),
        (lambda: Argmax().at(2.0), ConfigError, "rule argmax has no threshold"),
        (lambda: rule_named("argmax", threshold=0.1), ConfigError, "argmax does not take threshold"),
        (lambda: rule_named("pearson", count=3, by="mean"), ConfigError, "pearson does not take by, count; it takes l"),
        (lambda: rule_named("pearson", ratio=3.0), ConfigError, "pearson does not take ratio; it takes label"),
        (lambda: rule_named("ratio", ratio=0.5), ConfigError, "at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refused(act, kind, match):
    with pytest.raises(kind, match=match):
        act()


def test_what_was_not_collected_is_named(random_model, random_data):
    plain = collect(random_model, random_data, progress=False)
    for rule in (Argmax(), MutualInformation(), Top(count=1, by="mutual_information")):
        with pytest.raises(DataError, match="monet stats --firing"):
            rule.chosen(plain)
    with pytest.raises(DataError, match="monet stats --scores"):
        Pearson().chosen(plain)
    one = collect(random_model, random_data.only(["left"]), wanted=Wanted(firing=True), progress=False)
    with pytest.raises(DataError, match="no token of 'middle', 'right'"):
        MutualInformation().chosen(one)


def test_the_planted_experts_are_found_by_every_rule(planted_model, planted_data):
    statistics = collect(planted_model, planted_data, wanted=Wanted(firing=True), progress=False)
    for rule in (Ratio(), Argmax(), MutualInformation(0.5), Top(count=5), Top(count=5, by="mutual_information")):
        for label, chosen_REE in enumerate(rule.chosen(statistics).values()):
            assert chosen_REE.nonzero().tolist() == [[0, label, label]], rule
