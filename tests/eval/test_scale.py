"""Cost of an evaluation as domains, conditions and examples grow."""

import tracemalloc

import pytest
import torch

from benchmarks import eval_scale
from benchmarks.measured import exponent
from monet.cli import main
from monet.eval.ablation import verdicts
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.verdicts import summarise
from monet.eval.attribution.rules import Top
from monet.eval.attribution.statistics.result import ExpertStatistics
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.controls import Controls
from monet.eval.core.document import Bars, Heatmap, Panels
from monet.eval.core.loading import weights_digest
from monet.eval.reporting import figures
from monet.masks.expert_mask import ExpertMask
from monet.model import fingerprint
from tests.eval.conftest import LABELS
from tests.eval.test_commands import road, words  # noqa: F401 - a fixture

BOOTSTRAP = Bootstrap(resamples=1000)


@pytest.fixture
def hashings(monkeypatch):
    """A list that grows with every fingerprint of the weights."""
    taken, digest = [], fingerprint.digest_of_signs
    monkeypatch.setattr(fingerprint, "digest_of_signs", lambda *args: taken.append(1) or digest(*args))
    return taken


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3]])
def test_an_ablation_hashes_the_weights_once(random_model, random_data, tmp_path, hashings, seeds):
    name = random_model.fingerprint()
    masks = {label: ExpertMask.random(random_model.config, 5, seed=0, fingerprint=name) for label in LABELS}
    hashings.clear()
    ablate(random_model, masks, random_data, out=tmp_path, controls=Controls(len(seeds)), progress=False)
    assert len(hashings) == 1
    random_model.fingerprint()
    assert len(hashings) == 2  # held during the ablation only


def test_a_held_model_is_hashed_again_when_its_weights_change(random_model, hashings):
    with fingerprint.holding(random_model):
        before = random_model.fingerprint(), weights_digest(random_model)
        assert (random_model.fingerprint(), weights_digest(random_model)) == before and len(hashings) == 1
        with torch.no_grad():
            random_model.model.layers[0].self_attn.q_proj.weight.neg_()
        changed = random_model.fingerprint(), weights_digest(random_model)
        assert len(hashings) == 2 and changed[0] != before[0] and changed[1] != before[1]
        random_model.lm_head.weight = torch.nn.Parameter(random_model.lm_head.weight + 1)
        assert weights_digest(random_model) != changed[1]
        random_model.config.rms_norm_eps = 0.5
        assert len({before[1], changed[1], weights_digest(random_model)}) == 3
        with fingerprint.holding(random_model):
            pass
        random_model.fingerprint()
        assert len(hashings) == 2
        random_model.train()  # a fused optimizer then changes weights, which torch does not count
        random_model.model.norm.weight.data.neg_()
        random_model.eval()
        random_model.fingerprint()
        assert len(hashings) == 3


def test_a_free_model_is_hashed_at_every_call(random_model, hashings):
    before = random_model.fingerprint()
    random_model.model.layers[0].self_attn.q_proj.weight.data.neg_()  # torch counts no change
    assert random_model.fingerprint() != before and len(hashings) == 2


def test_a_command_hashes_the_weights_once(road, tmp_path, hashings):  # noqa: F811
    for verb in ("stats", "select"):
        assert main(words(verb, road, tmp_path)) == 0
    hashings.clear()
    assert main(words("ablate", road, tmp_path)) == 0
    assert len(hashings) == 1


def test_an_ablations_memory_does_not_grow_with_the_number_of_masks():
    def peak(seeds: int) -> int:
        names = [f"domain {number}" for number in range(8)]
        masks = {name: ExpertMask(torch.rand(1, 4, 4) > 0.5) for name in names}
        tracemalloc.start()
        summarise(masks, names, eval_scale.window_losses(range(8), 1500, 0), made_up(names, seeds), BOOTSTRAP, {})
        return tracemalloc.get_traced_memory()[1]

    def made_up(names, seeds):
        for name in names:
            for seed in (None, *range(seeds)):
                yield (name, seed), eval_scale.window_losses(range(8), 1500, 1)

    try:
        few, many = peak(2), peak(16)
    finally:
        tracemalloc.stop()
    # 6 times as many masks; only the draws of one domain and the sums of documents grow
    assert many < 2.5 * few


def test_sums_beyond_the_memory_go_into_a_file_and_give_the_same(random_model, random_data, tmp_path, monkeypatch):
    masks = {label: ExpertMask.random(random_model.config, 5, seed=0) for label in LABELS}
    whole = ablate(random_model, masks, random_data, out=tmp_path, progress=False)
    monkeypatch.setattr(verdicts, "IN_MEMORY_BYTES", 100)
    monkeypatch.setattr(verdicts, "SUMS_AT_ONCE", 10)
    again = ablate(random_model, masks, random_data, out=tmp_path, progress=False)
    assert whole is not None and again is not None
    assert again.domains == whole.domains and again.delta == whole.delta and again.random == whole.random


@pytest.mark.parametrize(("domains", "values"), [(40, True), (41, False), (120, False)])
def test_pictures_of_many_domains_are_bounded(domains, values):
    names = [f"domain {number}" for number in range(domains)]
    heatmap = Heatmap("removed", names, names, [[0.5] * domains] * domains, "nats")
    with figures.styled():
        drawing = figures.draw(Panels("increase", [heatmap], Bars("share", [1.0] * domains, ["1"] * domains)))
    assert (len(drawing.axes[0].texts) == domains**2) == values and bool(drawing.axes[0].texts) == values
    if not values:
        assert max(drawing.get_size_inches()) < 25 and len(drawing.axes[0].get_xticks()) <= 100


def test_the_rule_top_orders_only_own_experts(monkeypatch):
    ordered = []
    argsort = torch.Tensor.argsort
    monkeypatch.setattr(
        torch.Tensor, "argsort", lambda x, **options: ordered.append(x.numel()) or argsort(x, **options)
    )
    for labels in (5, 20):
        ordered.clear()
        sums_CREE = torch.rand(labels, 2, 16, 16, generator=torch.Generator().manual_seed(0)).double()
        counts = [torch.ones(labels, dtype=torch.int64)] * 3
        statistics = ExpertStatistics([str(label) for label in range(labels)], sums_CREE, *counts, "", {})
        chosen = Top(fraction=1.0).chosen(statistics)
        # every expert has one owner, which orders it by its mean and by its rank
        assert sum(ordered) == 2 * 512 and sum(int(own.sum()) for own in chosen.values()) == 512


def test_the_exponents_of_the_benchmark():
    assert exponent([10, 20], [1.0, 4.0]) == pytest.approx(2.0)
    assert exponent([10, 20], [1, 1]) == 0 == exponent([10], [1.0])
