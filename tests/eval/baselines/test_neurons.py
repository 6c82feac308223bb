"""Neurons of a dense model: their activities, the rule, and the effect of silencing, against direct computations."""

import pytest
import torch

from monet.errors import CheckpointError, ConfigError, NonFiniteError
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.baselines.neurons import NeuronMask, activities, down_projections, select_neurons
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences
from tests.eval.conftest import LABELS


def explicit_activities(model, data):
    sums, tokens = torch.zeros(3, 2, 20, dtype=torch.float64), torch.zeros(3)
    for sequence, label in zip(data.sequences, data.label_of, strict=True):
        states = model.model.embed_tokens(torch.tensor([sequence]))
        inputs: list = []
        hooks = [
            p.register_forward_pre_hook(lambda _, x, inputs=inputs: inputs.append(x[0]))
            for p in down_projections(model)
        ]
        model.model(inputs_embeds=states, use_cache=False)
        [hook.remove() for hook in hooks]
        for layer, x in enumerate(inputs):
            sums[label, layer] += x[0].abs().sum(0).double()
        tokens[label] += len(sequence)
    return sums / tokens[:, None, None]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_activities_are_means_over_tokens_without_pads(llama, random_data, side):
    data = LabelledSequences(LABELS, random_data.sequences, random_data.label_of, padding_side=side)
    found = activities(llama, data, batch_size=4, progress=False)
    torch.testing.assert_close(found, explicit_activities(llama, data), rtol=1e-5, atol=1e-7)


def test_neurons_follow_the_ratio_rule():
    means = torch.ones(3, 2, 4, dtype=torch.float64)
    means[1, 0, 2], means[2, 1, 0], means[0, 1, 3] = 2.0, 1.9, 5.0
    masks = select_neurons(means, LABELS, ratio=2.0)
    assert [mask.removed_per_group for mask in masks.values()] == [[0, 1], [1, 0], [0, 0]]
    assert not masks["middle"].keep_LF[0, 2] and not masks["left"].keep_LF[1, 3]
    first = select_neurons(means, LABELS, ratio=2.0, layers="first")
    assert [mask.num_removed for mask in first.values()] == [0, 1, 0]
    with pytest.raises(ConfigError, match="ratio"):
        select_neurons(means, LABELS, ratio=0.5)


@torch.no_grad()
def test_a_silenced_neuron_is_a_column_of_zeros(llama):
    ids = torch.arange(12)[None]
    mask = NeuronMask(torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) > 0.4)
    before = llama(input_ids=ids).logits
    with mask.applied_to(llama):
        masked = llama(input_ids=ids).logits
    assert torch.equal(llama(input_ids=ids).logits, before)
    for projection, keep in zip(down_projections(llama), mask.keep_LF, strict=True):
        projection.weight *= keep
    torch.testing.assert_close(masked, llama(input_ids=ids).logits)
    assert not torch.allclose(masked, before)
    assert mask.control("number", 1).removed_per_group == mask.removed_per_group


def test_an_ablation_reads_like_an_experts_one(llama, random_data, tmp_path):
    means = activities(llama, random_data, progress=False)
    masks = select_neurons(means, LABELS, ratio=1.05)
    result = ablate(llama, masks, random_data, out=tmp_path, progress=False)
    assert AblationResult.load(tmp_path) == result and result.unit == "neuron"
    assert [verdict.removed for verdict in result.domains] == [mask.num_removed for mask in masks.values()]
    assert any(verdict.target_delta != 0 for verdict in result.domains)


def test_a_killed_ablation_goes_on_with_the_losses_it_has(llama, random_data, tmp_path, monkeypatch):
    masks = select_neurons(activities(llama, random_data, progress=False), LABELS, 1.05)
    options = {"controls": Controls(1), "batch_size": 2, "progress": False}
    whole = ablate(llama, masks, random_data, out=tmp_path / "a", **options)
    forward, left = type(llama).forward, 12

    def dies(*args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    def again():
        return ablate(llama, masks, random_data, out=tmp_path / "b", **options)

    monkeypatch.setattr(type(llama), "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        again()
    left = 10**6
    found = again()
    assert (found.delta, found.random) == (whole.delta, whole.random)
    once = 10**6 - left
    left = 0
    assert again().delta == whole.delta  # nothing is run again
    monkeypatch.undo()
    forwards = 0

    def counted(*args, **kwargs):
        nonlocal forwards
        forwards += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(llama), "forward", counted)
    ablate(llama, masks, random_data, out=tmp_path / "c", **options)
    assert once == forwards - 12


def test_activities_that_are_not_finite_are_refused(llama, random_data):
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3] = torch.inf
    with pytest.raises(NonFiniteError, match="not finite on 'left'"):
        activities(llama, random_data, progress=False)


def test_other_models_are_refused(random_model):
    with pytest.raises(CheckpointError, match="down_proj"):
        down_projections(random_model)
