"""Random controls match the quantity that they claim to match, and are new for every text."""

import pytest
import torch

from monet.errors import ConfigError, DataError
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.stats import Wanted, collect
from monet.eval.core.controls import Controls
from monet.masks.controls import control_keep, removed_mass
from monet.masks.expert_mask import ExpertMask


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    weight_GN = torch.rand(2, 400, generator=generator, dtype=torch.float64) ** 4
    weight_GN[:, ::5] = 0.0  # units that never fire
    return weight_GN


@pytest.fixture
def keep(weights):
    keep_GN = torch.ones(2, 400, dtype=torch.bool)
    keep_GN.scatter_(1, weights.topk(12, dim=1).indices, False)
    return keep_GN


def test_equal_number_keeps_the_weights_and_moves_them():
    keep_GN = torch.rand(3, 50)
    found = [control_keep(keep_GN, "number", seed) for seed in range(5)]
    assert all(torch.equal(one.sort(1).values, keep_GN.sort(1).values) for one in found)
    assert len({tuple(one.flatten().tolist()) for one in found}) == 5
    assert torch.equal(control_keep(keep_GN, "number", 3), found[3])


@pytest.mark.parametrize("seed", range(8))
def test_equal_mass_is_met_exactly_in_every_group(keep, weights, seed):
    found = control_keep(keep, "mass", seed, weights)
    for group in range(2):
        wanted = removed_mass(keep[group : group + 1], weights[group : group + 1])
        assert removed_mass(found[group : group + 1], weights[group : group + 1]) == pytest.approx(wanted, rel=1e-6)
        attenuated = (found[group] > 0) & (found[group] < 1)
        assert int(attenuated.sum()) <= 1
        assert int((found[group] == 0).sum()) > 12  # the mask's own units are the heaviest
    assert found.dtype == torch.float32


@pytest.mark.parametrize("seed", range(8))
def test_equal_activity_takes_as_many_units_of_nearly_the_same_activity(keep, weights, seed):
    found = control_keep(keep, "activity", seed, weights)
    assert torch.equal((found != 1).sum(1), (keep != 1).sum(1)) and not torch.equal(found, keep)
    for group in range(2):
        order = weights[group].argsort(stable=True).argsort()
        own, others = (order[one[group] != 1].sort().values for one in (keep, found))
        assert int((own - others).abs().max()) <= 45


def test_soft_removals_have_soft_controls(weights):
    keep_GN = torch.ones(2, 400)
    keep_GN[:, :9], keep_GN[:, 9:20] = 0.5, 0.25
    activity = control_keep(keep_GN, "activity", 0, weights)
    assert torch.equal(activity.sort(1).values, keep_GN.sort(1).values)
    mass = control_keep(keep_GN, "mass", 0, weights)
    assert removed_mass(mass, weights) == pytest.approx(removed_mass(keep_GN, weights), rel=1e-6)


@pytest.mark.parametrize(("kind", "weight", "message"), [
    ("size", None, "'size': must be one of number, mass, activity"),
    ("mass", None, "need the statistics"),
    ("mass", torch.ones(1, 3), r"shape \(1, 3\)"),
    ("activity", -torch.ones(2, 400), "at least 0"),
    ("activity", torch.full((2, 400), torch.nan), "finite"),
])  # fmt: skip
def test_bad_requests_are_refused(keep, kind, weight, message):
    with pytest.raises(ConfigError, match=message):
        control_keep(keep, kind, 0, weight)


def test_mass_of_an_amplification_is_refused(weights):
    with pytest.raises(ConfigError, match="above 1"):
        control_keep(torch.full((2, 400), 2.0), "mass", 0, weights)


def test_controls_are_fresh_for_every_text_and_removal(random_model):
    mask, other = (ExpertMask.random(random_model.config, [3, 3], seed) for seed in (0, 1))
    draw = Controls(3).draw
    first = draw(mask, 0, "a", "validation")
    assert first == draw(mask, 0, "b", "validation")
    changed = (
        draw(mask, 1, "a", "validation"),
        draw(mask, 0, "a", "evaluate"),
        draw(other, 0, "a", "validation"),
        Controls(3, seed=1).draw(mask, 0, "a", "validation"),
    )
    assert all(first != one for one in changed)


def test_controls_take_the_weights_of_the_label(random_model, random_data, tmp_path):
    statistics = collect(random_model, random_data, wanted=Wanted(firing=True), progress=False)
    statistics.save(tmp_path / "s.safetensors")
    mask = ExpertMask.random(random_model.config, [4, 4], seed=0)
    controls = ControlOptions(kind="mass", statistics=tmp_path / "s.safetensors").open(random_model)
    for label, index in (("left", 0), ("right", 2)):
        found = controls.draw(mask, 0, label, "text")
        mean_REE = statistics.means()[index]
        assert removed_mass(found.keep_REE, mean_REE) == pytest.approx(removed_mass(mask.keep_REE, mean_REE), rel=1e-6)
        assert found.provenance["mass"] == pytest.approx(found.provenance["mass_of_mask"], rel=1e-6)
    overall = controls.draw(mask, 0, "another label", "text")
    mean_REE = statistics.sums_CREE.sum(0) / statistics.tokens_C.sum()
    assert removed_mass(overall.keep_REE, mean_REE) == pytest.approx(removed_mass(mask.keep_REE, mean_REE), rel=1e-6)
    fired = ControlOptions(kind="activity", statistics=tmp_path / "s.safetensors").open(random_model)
    assert fired.draw(mask, 0, "left", "text").removed_per_group == [4, 4]


def test_options_that_cannot_be_met_are_refused(random_model, random_data, tmp_path):
    with pytest.raises(ConfigError, match="count must be at least 0"):
        ControlOptions(count=-1)
    with pytest.raises(ConfigError, match=r"kind = mass needs .*--controls.statistics FILE"):
        ControlOptions(kind="mass")
    collect(random_model, random_data, progress=False).save(tmp_path / "s.safetensors")
    with pytest.raises(DataError, match="monet stats --firing true"):
        ControlOptions(kind="activity", statistics=tmp_path / "s.safetensors").open(random_model)
