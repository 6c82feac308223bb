"""Score moments, firing counts, maxima and co-activation against explicit loops in float64; merging and shards."""

import itertools
from dataclasses import replace

import pytest
import torch

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.statistics import collectors, limits, pairs
from monet.eval.attribution.statistics.collectors import Tokens, _Maxima
from monet.eval.attribution.statistics.extras import ScoreMoments
from monet.eval.attribution.statistics.pairs import ActiveExperts, ExpertLister, num_pairs
from monet.eval.attribution.stats import ExpertStatistics, Wanted, collect
from monet.eval.core.inputs import LabelledSequences, PreparedWindows
from monet.masks.expert_mask import ExpertMask
from tests.data.samples import make_shards
from tests.eval.conftest import LABELS
from tests.tolerances import assert_close

CHOSEN = {0: [7, 3, 24], 1: [0, 11]}
EVERYTHING = Wanted(firing=True, firing_above=0.4, maxima=True, coactivation=CHOSEN)


@pytest.fixture
def scored_data(random_data) -> LabelledSequences:
    generator = torch.Generator().manual_seed(5)
    scores = [torch.rand(len(sequence), generator=generator).tolist() for sequence in random_data.sequences]
    return replace(random_data, scores=scores)


def gates(model, data):
    """For every sequence: its number, its label, the scores of its tokens, and w (T, E*E) of each group in float64."""
    for number, (sequence, label) in enumerate(zip(data.sequences, data.label_of, strict=True)):
        with torch.no_grad():
            probs = model(torch.tensor([sequence]), output_router_probs=True).router_probs
        weights = []
        for g1, g2 in (pair for pair in probs if pair is not None):
            w_TN = torch.zeros(len(sequence), g1.shape[-1] ** 2, dtype=torch.float64)
            for t, h, i, j in itertools.product(*map(range, (*g1.shape[1:], g2.shape[-1]))):
                w_TN[t, i * g1.shape[-1] + j] += g1[0, t, h, i].double() * g2[0, t, h, j].double()
            weights.append(w_TN)
        yield number, label, data.scores[number] if data.scores else None, weights


def same(one: ExpertStatistics, other: ExpertStatistics) -> None:
    assert_close("sums", one.sums_CREE, other.sums_CREE, torch.float32)
    assert one.extras.keys() == other.extras.keys()
    for name, extra in one.extras.items():
        tensors, wanted = extra.tensors(), other.extras[name].tensors()
        assert tensors.keys() == wanted.keys()
        for key, tensor in tensors.items():
            if tensor.is_floating_point():
                assert_close(f"{name}.{key}", tensor, wanted[key], torch.float32)
            elif key != "place_REEP":  # tokens with the same prefix have the same weight, up to rounding
                assert torch.equal(tensor, wanted[key]), f"{name}.{key}"
    for name in ("tokens_C", "windows_C", "documents_C"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# -- lists of active experts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "entries"), [(1 << 24, 1 << 22), (60, 1 << 22), (1 << 24, 9), (1, 1)])
def test_lists_hold_every_active_expert_once(monkeypatch, cells, entries):
    monkeypatch.setattr(limits, "PAIR_CELLS", {"cpu": cells})
    monkeypatch.setattr(limits, "PAIR_ENTRIES", entries)
    T, H, E = 11, 3, 5
    g1_THE, g2_THE = (torch.rand(T, H, E) * (torch.rand(T, H, E) < 0.4) for _ in range(2))
    g1_THE[4] = 0.0  # a token at which nothing fires
    w_TN = torch.einsum("thi,thj->tij", g1_THE.double(), g2_THE.double()).flatten(1)
    found_TN = torch.zeros_like(w_TN)
    lists = list(ExpertLister(E, torch.device("cpu")).lists(g1_THE, g2_THE))
    for active in lists:
        assert (found_TN[active.token_P, active.expert_P] == 0).all()
        found_TN[active.token_P, active.expert_P] = active.weight_P
    assert_close("weights", found_TN, w_TN, torch.float64)
    listed = torch.cat([active.token_P * E**2 + active.expert_P for active in lists])
    assert len(listed) == len(set(listed.tolist())) == int((w_TN > 0).sum())
    assert num_pairs(g1_THE, g2_THE) == int(((g1_THE > 0).sum(-1) * (g2_THE > 0).sum(-1)).sum())


def test_products_and_lists_add_up_to_the_same(random_model, random_data, monkeypatch):
    found = []
    for products_a_pair in (0, 10**9):
        monkeypatch.setattr(limits, "PRODUCTS_A_PAIR", products_a_pair)
        found.append(collect(random_model, random_data, progress=False))
    assert not torch.equal(found[0].sums_CREE, found[1].sums_CREE)  # float32 products, float64 lists
    same(*found)


# -- moments and correlations -----------------------------------------------------------------------------------------


def test_correlations_are_those_of_two_passes_over_all_tokens(random_model, scored_data):
    statistics = collect(random_model, scored_data, batch_size=4, progress=False)
    weights, scores = [], []
    for _, _, token_scores, w in gates(random_model, scored_data):
        weights.append(torch.stack(w, dim=1))
        scores += token_scores
    w_TRN, y_T = torch.cat(weights), torch.tensor(scores, dtype=torch.float64)
    w_TRN = w_TRN - w_TRN.mean(0)
    y_T = y_T - y_T.mean()
    wanted = torch.einsum("trn,t->rn", w_TRN, y_T) / (w_TRN.square().sum(0) * y_T.square().sum()).sqrt()
    varies = w_TRN.abs().amax(0) > 1e-6
    found = statistics.correlations().flatten(1)
    assert torch.equal(torch.isnan(found), ~varies)
    assert varies.any() and found[varies].abs().max() > 0.1
    assert_close("r", found[varies], wanted[varies], torch.float32)
    assert statistics.scores is not None and int(statistics.scores.tokens) == len(y_T)
    assert float(statistics.scores.score_max) == max(scores)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e6])
def test_a_constant_score_correlates_with_nothing(random_model, scored_data, value):
    data = replace(scored_data, scores=[[value] * len(sequence) for sequence in scored_data.sequences])
    assert collect(random_model, data, progress=False).correlations().isnan().all()


def test_a_score_whose_spread_is_lost_in_rounding_correlates_with_nothing(random_model, scored_data):
    data = replace(scored_data, scores=[[1e9 + score for score in scores] for scores in scored_data.scores])
    assert collect(random_model, data, progress=False).correlations().isnan().all()


def test_a_document_may_have_any_number_for_a_name(random_model, random_data):
    names = [str(10**30 + number) if number % 2 else str(number) for number in range(17)]
    found = collect(random_model, replace(random_data, documents=names), wanted=Wanted(maxima=True), progress=False)
    assert found.maxima is not None
    _, window, document = found.maxima.place_REEP[found.maxima.weight_REE > 0][:, :3].T
    assert torch.equal(document, torch.where(window % 2 == 0, window, -1)) and len(document.unique()) > 2


def test_a_weight_that_never_varies_correlates_with_nothing(planted_model, planted_data):
    """With the text of only one label, its expert has the same weight at every token, and all others have none."""
    data = planted_data.only(["left"])
    scores = [torch.rand(len(sequence)).tolist() for sequence in planted_data.sequences]
    statistics = collect(planted_model, replace(data, scores=scores), progress=False)
    assert statistics.sums_CREE[0, 0, 0, 0] > 1
    assert statistics.correlations().isnan().all()


def test_rounding_is_no_variance():
    """Sums of one weight at seven tokens; none of these sums is exact."""
    w, y_T = 0.1, torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sums = [torch.zeros(1, 1, 1, dtype=torch.float64) for _ in range(3)]
    for y in y_T:
        for total, value in zip(sums, (w, w * y, w * w), strict=True):
            total += value
    moments = ScoreMoments(torch.tensor(7), y_T.sum(), y_T.square().sum(), y_T.amin(), y_T.amax(), *sums[1:])
    assert (7 * sums[2] - sums[0].square()).abs().max() > 0
    assert moments.correlations(sums[0]).isnan().all()


def test_correlation_with_a_planted_score_is_one(planted_model, planted_data):
    scores = [[float(label == 1)] * len(ids) for ids, label in zip(planted_data.sequences, planted_data.label_of,
                                                                   strict=True)]  # fmt: skip
    r = collect(planted_model, replace(planted_data, scores=scores), progress=False).correlations()
    assert r[0, 1, 1] == pytest.approx(1.0, abs=1e-12) and r[0, 0, 0] < 0 > r[0, 2, 2]
    assert (~r.isnan()).sum() == 3


def test_without_scores_there_is_no_correlation(random_model, random_data):
    with pytest.raises(DataError, match="--scores"):
        collect(random_model, random_data, progress=False).correlations()


# -- counts, maxima, co-activation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_counts_maxima_and_coactivation_equal_loops(random_model, random_data, side):
    data = replace(random_data, padding_side=side)
    statistics = collect(random_model, data, batch_size=4, wanted=EVERYTHING, progress=False)
    fired, strongest, above = (torch.zeros(3, 2, 25, dtype=torch.int64) for _ in range(3))
    together = torch.zeros(2, 3, 3, dtype=torch.int64)
    largest = torch.zeros(2, 25, dtype=torch.float64)
    every = {}
    for number, label, _, weights in gates(random_model, random_data):
        every[number] = weights
        for group, w_TN in enumerate(weights):
            largest[group] = torch.maximum(largest[group], w_TN.amax(0))
            for w_N in w_TN:
                fired[label, group] += w_N > 0
                above[label, group] += w_N > 0.4
                strongest[label, group, int(w_N.argmax())] += 1
                for a, one in enumerate(CHOSEN[group]):
                    for b, other in enumerate(CHOSEN[group]):
                        together[group, a, b] += bool(w_N[one] > 0 and w_N[other] > 0)
    firing, maxima, coactivation = statistics.firing, statistics.maxima, statistics.coactivation
    assert firing is not None and maxima is not None and coactivation is not None
    assert firing.above_CREE is not None and float(firing.threshold) == 0.4
    assert torch.equal(firing.fired_CREE.flatten(2), fired) and fired.min() < fired.max()
    assert torch.equal(firing.above_CREE.flatten(2), above) and 0 < above.sum() < fired.sum()
    assert torch.equal(firing.strongest_CREE.flatten(2), strongest)
    assert torch.equal(firing.strongest_CREE.sum(dim=(2, 3)), statistics.tokens_C[:, None].expand(3, 2))
    assert torch.equal(coactivation.tokens_RNN, together) and together[0, 0, 1] > 0
    assert coactivation.experts_RN.tolist() == [[7, 3, 24], [0, 11, -1]]
    assert_close("largest", maxima.weight_REE.flatten(1), largest, torch.float32)
    for group, expert in itertools.product(range(2), range(25)):
        part, window, document, position = maxima.place_REEP.flatten(1, 2)[group, expert].tolist()
        if largest[group, expert] == 0:
            assert part == window == document == position == -1
        else:
            assert part == 0 and window == document
            assert every[window][group][position, expert] == pytest.approx(float(largest[group, expert]), rel=1e-6)


def test_the_lowest_of_equally_strong_experts_is_the_strongest():
    active = pairs.ActiveExperts(
        torch.tensor([0, 0, 1, 1, 1]), torch.tensor([8, 3, 2, 5, 4]), torch.tensor([0.5, 0.5, 0.1, 0.7, 0.7]).double()
    )
    firing = collectors._Firing(torch.zeros(1, 1, 3, 3, dtype=torch.float64), None)
    firing.add(
        0, active, active.expert_P, collectors.Tokens(None, torch.zeros(3, dtype=torch.int64), None, torch.zeros(3, 3))
    )
    assert firing.strongest_CREE.view(-1).nonzero().view(-1).tolist() == [3, 4]


def test_the_first_of_equal_maxima_is_kept():
    active = pairs.ActiveExperts(
        torch.tensor([0, 1, 1, 2, 3]),
        torch.tensor([4, 4, 2, 4, 4]),
        torch.tensor([0.25, 0.9, 0.5, 0.9, 0.125]).double(),
    )
    maxima = collectors._Maxima(torch.zeros(1, 1, 3, 3, dtype=torch.float64))
    places = torch.arange(12).view(4, 3)
    for _ in range(2):  # again: equal is not larger
        maxima.add(0, active, active.expert_P, collectors.Tokens(None, torch.zeros(4, dtype=torch.int64), None, places))
        places = places + 100
    found = maxima.result()
    assert found.weight_REE.view(-1).tolist() == [0, 0, 0.5, 0, pytest.approx(0.9), 0, 0, 0, 0]
    assert found.place_REEP.view(-1, 4)[[2, 4, 0]].tolist() == [[0, 3, 4, 5], [0, 3, 4, 5], [-1, -1, -1, -1]]


def test_pairs_are_counted_exactly_under_autocast(planted_model, planted_data):
    """Above 256, bfloat16 holds only even numbers."""
    data = replace(planted_data, sequences=[[0] * 31 for _ in range(30)], label_of=[0] * 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collect(planted_model, data, batch_size=30, wanted=Wanted(coactivation={0: [0]}), progress=False)
    assert found.coactivation is not None and int(found.coactivation.tokens_RNN) == 930


def test_the_strongest_are_named_in_order(random_model, random_data):
    statistics = collect(random_model, random_data, progress=False)
    ids_RN = statistics.strongest(4)
    sums_RN = statistics.sums_CREE.sum(0).flatten(1)
    for group in range(2):
        chosen = sums_RN[group, ids_RN[group]].tolist()
        assert chosen == sorted(sums_RN[group].tolist(), reverse=True)[:4]


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 17])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_size_and_padding_side_do_not_matter(random_model, scored_data, batch_size, side):
    whole = collect(random_model, scored_data, wanted=EVERYTHING, progress=False)
    data = replace(scored_data, padding_side=side, pad_id=7)
    same(collect(random_model, data, batch_size=batch_size, wanted=EVERYTHING, progress=False), whole)


@pytest.mark.parametrize(("batch_size", "side"), [(1, "right"), (5, "left"), (7, "right"), (51, "left")])
def test_of_equal_weights_the_first_has_the_place(random_model, random_data, batch_size, side):
    """Every sequence occurs three times among other sequences; the last bits of its weights depend on its pads."""
    thrice = LabelledSequences(LABELS, random_data.sequences * 3, random_data.label_of * 3, padding_side=side)
    found = collect(random_model, thrice, batch_size=batch_size, wanted=Wanted(maxima=True), progress=False)
    once = collect(random_model, random_data, batch_size=1, wanted=Wanted(maxima=True), progress=False)
    assert found.maxima is not None and once.maxima is not None
    assert torch.equal(found.maxima.place_REEP, once.maxima.place_REEP)
    again = LabelledSequences(LABELS, random_data.sequences, random_data.label_of, padding_side=side)
    later = collect(random_model, again, batch_size=batch_size, wanted=Wanted(maxima=True), progress=False).maxima
    assert later is not None and torch.equal(once.maxima.merge(later, 1).place_REEP, once.maxima.place_REEP)


def test_a_place_is_taken_by_weights_that_are_clearly_larger():
    """Weights of one expert in reading order: 1 + 1e-6 is equal to the first, 1 + 2e-5 is not, in any division."""
    weights = [0.5, 1.0, 1 + 1e-6, 1 + 9e-6, 1 + 2e-5, 1 + 2.5e-5, 0.1]
    for size in range(1, len(weights) + 1):
        maxima = _Maxima(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
        for start in range(0, len(weights), size):
            weight_P = torch.tensor(weights[start : start + size], dtype=torch.float64)
            place_X3 = torch.arange(start, start + len(weight_P))[:, None].expand(-1, 3)
            active = ActiveExperts(torch.arange(len(weight_P)), torch.zeros(len(weight_P), dtype=torch.int64), weight_P)
            maxima.add(0, active, active.expert_P, Tokens(None, active.expert_P, None, place_X3))
        assert maxima.result().place_REEP.flatten().tolist() == [0, 4, 4, 4] and maxima.weight_REE.item() == 1 + 2e-5


@pytest.mark.parametrize("count", [2, 5])
def test_shards_add_up_to_one_pass(random_model, scored_data, count):
    whole = collect(random_model, scored_data, wanted=EVERYTHING, progress=False)
    shards = [
        collect(random_model, scored_data.shard(n, count), wanted=EVERYTHING, progress=False) for n in range(count)
    ]
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged.merge(shard)
    assert merged.maxima is not None and whole.maxima is not None
    place_REEP = merged.maxima.place_REEP
    active = place_REEP[..., 0] >= 0
    assert torch.equal(place_REEP[active][:, 0], place_REEP[active][:, 1] % count)
    same(merged, whole)


def test_what_does_not_add_up_is_refused(random_model, scored_data):
    def part(index=0, count=2, data=scored_data, **wanted):
        return collect(random_model, data.shard(index, count), wanted=Wanted(**wanted), progress=False)

    def refuse(one, other, match):
        with pytest.raises(CheckpointError, match=match):
            one.merge(other)

    refuse(part(0), part(0), "count twice")
    refuse(part(0), part(1, 3), "count twice")
    refuse(part(0), collect(random_model, scored_data, progress=False), "count twice")
    refuse(part(0, firing=True), part(1), "same options")
    refuse(part(0, firing_above=0.1), part(1, firing_above=0.2), "above 0.1 and above 0.2")
    refuse(part(0, firing=True), part(1, firing_above=0.2), "above None and above 0.2")
    refuse(part(0, coactivation={0: [1]}), part(1, coactivation={0: [2]}), "different experts")
    refuse(part(0), part(1, data=replace(scored_data, scores=None)), "same options")
    long, short = (replace(scored_data, notes={"file_sha256": "a", "seq_len": length}) for length in (16, 8))
    refuse(part(0, data=long), part(1, data=short), "count twice")
    masked = part(0)
    random_model.set_expert_mask(ExpertMask.random(random_model.config, 20, seed=0))
    refuse(masked, part(1), "two stored masks")


def test_one_text_cut_twice_is_not_added_up(random_model, tmp_path):
    documents = {
        name: [[3 + (7 * n + t) % 20 for t in range(30)] for n in range(k, k + 3)] for k, name in enumerate("ab")
    }
    folder = make_shards(tmp_path, {"identify": documents}, vocab_size=24)
    parts = [
        collect(random_model, PreparedWindows(folder, "identify", length, most), progress=False)
        for length, most in ((8, None), (8, 2), (4, None))
    ]
    for one, other in itertools.combinations(parts, 2):
        with pytest.raises(CheckpointError, match="count twice"):
            one.merge(other)
    by_domain = [
        collect(random_model, PreparedWindows(folder, "identify", 8).only([domain]), progress=False) for domain in "ab"
    ]
    same(by_domain[0].merge(by_domain[1]), parts[0])


def test_everything_survives_the_file(random_model, scored_data, tmp_path):
    statistics = collect(random_model, scored_data, wanted=EVERYTHING, progress=False)
    statistics.save(tmp_path / "s.safetensors")
    loaded = ExpertStatistics.load(tmp_path / "s.safetensors", model=random_model)
    assert set(loaded.extras) == {"scores", "firing", "maxima", "coactivation"}
    for name, extra in statistics.extras.items():
        for key, tensor in extra.tensors().items():
            assert torch.equal(loaded.extras[name].tensors()[key], tensor), f"{name}.{key}"


def test_extras_of_another_size_are_refused(random_model, random_data, tmp_path):
    statistics = collect(random_model, random_data, wanted=Wanted(firing=True), progress=False)
    assert statistics.firing is not None
    cut = replace(statistics.firing, fired_CREE=statistics.firing.fired_CREE[:2])
    replace(statistics, firing=cut).save(tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match="firing fired_CREE of shape"):
        ExpertStatistics.load(tmp_path / "s.safetensors")


def test_prepared_windows_are_dealt_by_document(tmp_path):
    documents = {"a": [[5] * 40, [6] * 3, [7] * 25, [8] * 9], "b": [[9] * 30, [3] * 30]}
    folder = make_shards(tmp_path / "data", {"identify": documents}, vocab_size=24)
    whole = PreparedWindows(folder, "identify", 8)
    shards = [whole.shard(n, 3) for n in range(3)]

    def windows(data):
        return [(int(i), name) for batch in data.batches(2) for i, name in zip(batch.index_B, batch.document_B,
                                                                               strict=True)]  # fmt: skip

    assert sorted(itertools.chain.from_iterable(map(windows, shards))) == sorted(windows(whole))
    holders = {}
    for number, shard in enumerate(shards):
        for window, document in windows(shard):
            assert holders.setdefault((whole.dataset.locate(window)[0], document), number) == number
    assert len(set(holders.values())) == 3
    with pytest.raises(ConfigError, match=r"3/3 is not a part: .* 0 to 2"):
        whole.shard(3, 3)


# -- reading scored text ----------------------------------------------------------------------------------------------


def test_only_some_with_scores_is_refused(random_model, scored_data):
    class Half(LabelledSequences):
        def batches(self, batch_size):
            for number, batch in enumerate(super().batches(batch_size)):
                yield batch._replace(score_BT=None) if number else batch

    half = Half(scored_data.labels, scored_data.sequences, scored_data.label_of, scores=scored_data.scores)
    with pytest.raises(DataError, match="others do not, from window 8"):
        collect(random_model, half, progress=False)
