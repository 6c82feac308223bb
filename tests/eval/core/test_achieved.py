"""Results of every suite record how much of a mask's mass and activity its random controls take."""

import pytest
import torch

from monet.eval.ablation.measure import ablate
from monet.eval.ablation.report import control_blocks
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import Wanted, collect
from monet.eval.baselines.neurons import NeuronMask
from monet.eval.core.achieved import achieved, told
from monet.eval.core.conditions import conditions
from monet.eval.core.controls import Controls
from monet.eval.core.document import Table
from monet.eval.core.mean_ablation import MeanAblation
from monet.eval.reporting.command import report_of
from monet.masks.controls import _NEAREST, _nearest
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import LABELS


@pytest.fixture
def statistics(random_model, random_data, tmp_path):
    found = collect(random_model, random_data, wanted=Wanted(firing=True), progress=False)
    found.save(tmp_path / "s.safetensors")
    return found


@pytest.fixture
def masks(statistics):
    return select(statistics, 1.05)


def ratios_by_hand(masks, controls, label, weight_REE):
    own = ((1 - masks[label].keep_REE.double()) * weight_REE).sum()
    drawn = [controls.draw(masks[label], number, label, "text").keep_REE for number in range(controls.count)]
    return [float(((1 - keep_REE.double()) * weight_REE).sum() / own) for keep_REE in drawn]


@pytest.mark.parametrize("kind", ["number", "mass", "activity"])
def test_ratios_are_those_of_the_drawn_controls(random_model, statistics, masks, kind, tmp_path):
    controls = ControlOptions(5, kind, tmp_path / "s.safetensors").open(random_model)
    found = {(one.mask, one.of): one for one in achieved(conditions(masks, controls, "text"))}
    quantities = ["mass", "activity"] if kind == "activity" else ["mass"]
    assert list(found) == [(label, of) for label in LABELS if masks[label].num_removed for of in quantities]
    fired_CREE = statistics.firing.fired_CREE / statistics.tokens_C.view(3, 1, 1, 1)
    for (label, of), one in found.items():
        index = LABELS.index(label)
        weight_REE = statistics.means()[index] if of == "mass" else fired_CREE[index]
        ratios = ratios_by_hand(masks, controls, label, weight_REE)
        assert (one.least, one.most) == pytest.approx((min(ratios), max(ratios)))
        assert one.mean == pytest.approx(sum(ratios) / 5)
        if kind == "mass":
            assert one.least == pytest.approx(1.0, rel=1e-5) and one.most == pytest.approx(1.0, rel=1e-5)
        if kind == "number":
            assert one.least < one.most


def test_results_reports_and_terminal_have_it(random_model, random_data, masks, tmp_path):
    controls = ControlOptions(4, "number", tmp_path / "s.safetensors").open(random_model)
    result = ablate(random_model, masks, random_data, out=tmp_path / "o", controls=controls, progress=False)
    assert result is not None and AblationResult.load(tmp_path / "o") == result
    first, *_ = notes = result.provenance["controls"]["achieved"]
    assert [one["mask"] for one in notes] == [label for label in LABELS if masks[label].num_removed]
    assert first["of"] == "mass" and first["least"] <= first["mean"] <= first["most"]
    tables = [block for block in report_of(result).blocks if isinstance(block, Table)]
    (table,) = [block for block in tables if block.title.startswith("What the random controls take")]
    assert table.rows[0][:2] == [first["mask"], "mass"] and table.rows[0][4] == f"{first['mean']:.3g}"
    (line,) = told(result.provenance)
    assert line.startswith("mass that random controls take") and f"{first['mask']} {first['mean']:.3g} (" in line


def test_without_statistics_nothing_is_said(random_model, random_data, masks, tmp_path):
    result = ablate(random_model, masks, random_data, out=tmp_path, controls=Controls(1), progress=False)
    assert result is not None and result.provenance["controls"]["achieved"] == []
    assert told(result.provenance) == [] and told({}) == [] and control_blocks({}) == []


def test_masks_without_mass_are_left_out(random_model, masks):
    zeros = torch.zeros(2, 5, 5, dtype=torch.float64)
    controls = Controls(2, measured={"mass": {"left": zeros, "": zeros + 1}})
    one = ExpertMask.random(random_model.config, 4, seed=0)
    (found,) = achieved(conditions({"left": one, "right": one}, controls, ""))
    assert (found.mask, found.own, found.least, found.most) == ("right", 4.0, 1.0, 1.0)


def test_every_intervention_says_what_it_takes(random_model, random_data):
    keep_REE = torch.ones(2, 5, 5)
    keep_REE[0, 0, :3] = torch.tensor([0.0, 0.5, 2.0])
    weights = torch.arange(50.0).view(2, 5, 5)
    mask = ExpertMask(keep_REE)
    assert mask.taken(weights) == 0 + 0.5 - 2 == MeanAblation(mask, random_data).taken(weights)
    assert NeuronMask(keep_REE.flatten(1)).taken(weights.flatten(1)) == -1.5


@pytest.mark.parametrize("seed", range(20))
def test_nearest_free_places_are_those_of_a_full_search(seed):
    generator = torch.Generator().manual_seed(seed)
    free_N = torch.rand(900, generator=generator) < [0.9, 0.05, 0.02, 0.5][seed % 4]
    for place in (0, 3, 450, 899, int(torch.randint(900, (1,), generator=generator))):
        places = free_N.nonzero().flatten()
        wanted = places[(places - place).abs().argsort(stable=True)[:_NEAREST]]
        assert torch.equal(_nearest(free_N, place), wanted)
