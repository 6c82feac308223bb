"""The promises of the interface, for each intervention here: zero and mean ablation, attenuation, steering."""

import dataclasses

import pytest
import torch

from monet.errors import CheckpointError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.baselines.neurons import NeuronMask
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences
from monet.eval.core.intervention import Intervention, check_all, share
from monet.eval.core.mean_ablation import MeanAblation, removed_means
from monet.eval.reporting.command import report_of
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import LABELS, config
from tests.tolerances import assert_close

KINDS = [
    "experts",
    "experts attenuated",
    "experts amplified",
    "experts' mean",
    "neurons",
    "neurons amplified",
    "neurons' mean",
]


@pytest.fixture(params=KINDS)
def case(request, random_model, llama, random_data):
    """A model, and an intervention that fits it."""
    unit, _, how = request.param.partition(" ")
    weight = {"attenuated": 0.5, "amplified": 2.5}.get(how, 0.0)
    if unit.startswith("experts"):
        shape = random_model.config
        keep_REE = ExpertMask.random(shape, [6, 6], seed=0).keep_REE
        one, model = ExpertMask(torch.where(keep_REE, 1.0, weight)), random_model
    else:
        keep_LF = torch.ones(2, 20)
        keep_LF[:, 3:9] = weight
        one, model = NeuronMask(keep_LF), llama
    return model, MeanAblation(one, random_data, 7) if request.param.endswith("mean") else one


def logits(model, data):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[0] for row in data.sequences])


def test_it_keeps_the_promises_of_the_interface(case, random_data):
    model, one = case
    assert isinstance(one, Intervention)
    assert one.num_removed == sum(one.removed_per_group) == 12 and share(one) == 12 / one.num_units
    one.check_fits(model)
    before = logits(model, random_data)
    with one.applied_to(model):
        changed = logits(model, random_data)
    assert torch.equal(logits(model, random_data), before)  # nothing is left behind
    assert not torch.allclose(changed, before)
    control = one.control("number", 5)
    assert isinstance(control, Intervention) and type(control) is type(one)
    assert control.removed_per_group == one.removed_per_group and control.digest != one.digest
    assert one.control("number", 5).digest == control.digest
    assert all(site in set(model.modules()) for site in one.sites(model))


def test_every_one_of_them_is_judged_by_ablation(case, random_data, tmp_path):
    model, one = case
    result = ablate(model, {"left": one}, random_data, out=tmp_path, controls=Controls(4), progress=False)
    assert result is not None and AblationResult.load(tmp_path) == result
    (verdict,) = result.domains
    assert (result.unit, result.group, verdict.removed, verdict.controls) == (one.unit, one.group, 12, 4)
    assert verdict.p >= 1 / 5 and not verdict.passes and "4 random controls" in verdict.reason
    assert len(verdict.random_per_control) == 4 and report_of(result).blocks


def test_another_models_intervention_is_refused(random_model, llama):
    with pytest.raises(CheckpointError, match="mask for 'a'"):
        check_all({"a": NeuronMask(torch.ones(3, 20))}, llama)
    with pytest.raises(CheckpointError, match="mask for 'b'"):
        check_all({"b": ExpertMask.keep_all(config(moe_experts=7))}, random_model)
    with pytest.raises(CheckpointError, match="down_proj"):
        check_all({"c": NeuronMask(torch.ones(2, 20))}, random_model)


def explicit_means(model, one, data):
    """The mean contribution that the removal takes at each site, over tokens, one sequence at a time, in float64."""
    states, sums, tokens = [], [0.0] * len(one.sites(model)), 0
    for row in data.sequences:
        states.clear()
        hooks = [site.register_forward_hook(lambda _, x, y: states.append((x, y))) for site in one.sites(model)]
        with torch.no_grad():
            model(torch.tensor([row]))
        [hook.remove() for hook in hooks]
        for place, (inputs, output) in enumerate(list(states)):
            if isinstance(one, NeuronMask):
                site, keep_F = one.sites(model)[place], one.keep_LF[place]
                inner = site.act_fn(site.gate_proj(inputs[0])) * site.up_proj(inputs[0])
                without = site.down_proj(inner * keep_F)
            else:
                from monet.kernels.masked import Keep

                group = place // model.config.moe_groups
                keep = Keep(one.keep_REE[group][None], torch.zeros(len(row), dtype=torch.long))
                without = one.sites(model)[place](*inputs, keep=keep)
            sums[place] = sums[place] + (output - without).double().sum((0, 1))
        tokens += len(row)
    return [one / tokens for one in sums]


@torch.no_grad()
def test_a_mean_is_that_of_the_removed_contribution(random_model, llama, random_data):
    data = LabelledSequences(
        LABELS, [row[: 4 + n % 5] for n, row in enumerate(random_data.sequences)], random_data.label_of
    )
    keep_LF = torch.ones(2, 20)
    keep_LF[:, 3:9] = 0
    for model, one in ((llama, NeuronMask(keep_LF)), (random_model, ExpertMask.random(random_model.config, [6, 6], 0))):
        found = removed_means(model, one, data, batch_size=4)
        wanted = explicit_means(model, one, data)
        assert len(found) == len(wanted)
        for mean, explicit in zip(found, wanted, strict=True):
            torch.testing.assert_close(mean.double(), explicit, rtol=1e-4, atol=1e-6)


def test_a_constant_contribution_is_not_missed(llama, random_data):
    """A neuron with the same value at every token carries no information: its mean ablation changes nothing."""
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.mlp.down_proj.weight[:, 3:9] = 0
    keep_LF = torch.ones(2, 20)
    keep_LF[:, 3:9] = 0
    one = MeanAblation(NeuronMask(keep_LF), random_data)
    before = logits(llama, random_data)
    with one.applied_to(llama):
        assert torch.allclose(logits(llama, random_data), before)


def test_an_amplified_expert_adds_so_many_times_what_it_adds(random_model, random_data):
    """At one site the change is linear in the keep-weight."""
    keep_REE = ExpertMask.random(random_model.config, [6, 6], seed=0).keep_REE
    outputs = {}
    for weight in (0.0, 1.0, 3.0):
        kept = []
        mask = ExpertMask(torch.where(keep_REE, 1.0, weight))
        hook = mask.sites(random_model)[0].register_forward_hook(lambda _, x, y, kept=kept: kept.append(y))
        with torch.no_grad(), mask.applied_to(random_model):
            random_model(torch.tensor(random_data.sequences[:1]))
        hook.remove()
        outputs[weight] = kept[0].double()
    assert_close("chunks", (outputs[3.0] - outputs[1.0]).float(), 2 * (outputs[1.0] - outputs[0.0]).float())


def test_masks_of_two_kinds_are_not_judged_together(llama, random_model, random_data, tmp_path):
    masks = {"left": NeuronMask(torch.zeros(2, 20)), "right": ExpertMask.random(random_model.config, 3, seed=0)}
    with pytest.raises(Exception, match="experts and neurons cannot be judged together"):
        ablate(llama, masks, random_data, out=tmp_path, progress=False)


def test_the_mean_is_part_of_the_digest(random_data):
    mask = NeuronMask(torch.zeros(2, 20))
    other = dataclasses.replace(random_data, sequences=random_data.sequences[:4], label_of=random_data.label_of[:4])
    digests = {mask.digest, MeanAblation(mask, random_data).digest, MeanAblation(mask, other).digest}
    assert len(digests) == 3
