"""Leave-one-out, gradient times activation, and masks, checked against each other and against explicit removal."""

from __future__ import annotations

import pytest
import torch

from monet.errors import ConfigError
from monet.eval.index.units import Units
from monet.eval.inspection.networks import mask_of
from monet.eval.inspection.text import gradient_contributions, leave_one_out, mask_effect
from monet.masks.expert_mask import ExpertMask
from tests.eval.index.conftest import E, make_model

IDS = [3, 17, 5, 5, 20, 1, 9]
FORMS = {
    "vertical": {},
    "horizontal": {"moe_decompose": "horizontal"},
    "hybrid": {"num_hidden_layers": 4, "dense_layers": [1], "intermediate_size": 20},
}


@pytest.fixture(params=FORMS)
def model(request):
    return make_model(**FORMS[request.param])


def log_probabilities(model, ids, mask=None) -> torch.Tensor:
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids]), expert_mask=mask).logits[0].double(), -1)
    return scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def test_gradient_times_activation_is_the_derivative_by_the_keep_weight(model):
    model = model.double()  # its norms round to float32 still, so a quotient is exact to about 1e-4
    found = gradient_contributions(model, IDS)
    assert (found.source_P <= found.target_P).all()
    for target in (0, 3, 5):
        best = found.by_expert(target)
        for group, expert, value in best[:3]:
            step, scores = 1e-3, []
            for sign in (1, -1):
                keep = torch.ones(2, E, E)
                keep[group, expert // E, expert % E] += sign * step
                scores.append(log_probabilities(model, IDS, ExpertMask(keep))[target])
            assert value == pytest.approx(float(scores[0] - scores[1]) / (2 * step), rel=5e-3, abs=5e-4)


def test_leave_one_out_is_the_loss_of_explicit_removal(model):
    units = Units(2, E)
    chosen = [units.pair(0, 3, 4), units.pair(1, 0, 7), units.half(0, i=2), units.half(1, j=5)]
    effect = leave_one_out(model, IDS, chosen, batch_size=3)
    whole = log_probabilities(model, IDS)
    for row, unit in zip(effect, chosen, strict=True):
        removed = log_probabilities(model, IDS, mask_of(model, [unit]))
        assert torch.allclose(row.double(), whole - removed, atol=1e-5)
    assert mask_of(model, [chosen[2]]).num_removed == E


def test_gradient_and_leave_one_out_agree_on_small_effects(model):
    for layer in model.model.layers:  # weaker experts change the model almost linearly
        if layer.moe is not None:
            for name, weight in layer.moe.named_parameters():
                if name.startswith(("v", "b")):
                    weight.data *= 0.05
    found = gradient_contributions(model, IDS, [len(IDS) - 2])
    best = found.by_expert(len(IDS) - 2)[:40]
    units = Units(2, E)
    exact = leave_one_out(model, IDS, [units.unit(group, expert) for group, expert, _ in best])[:, -1].double()
    estimated = torch.tensor([value for *_, value in best], dtype=torch.float64)
    assert float(torch.corrcoef(torch.stack([exact, estimated]))[0, 1]) > 0.98
    # single experts differ more: without them a key of a later router crosses its threshold
    assert float((exact - estimated).abs().median()) < 0.05 * float(exact.abs().median())


def test_experts_that_a_mask_removes_contribute_nothing(model):
    target = len(IDS) - 2
    (group, expert, _), (other_group, other, _), *_ = gradient_contributions(model, IDS, [target]).by_expert(target)
    keep = torch.ones(2, E, E)
    keep[group, expert // E, expert % E] = 0
    model.set_expert_mask(ExpertMask(keep))
    found = gradient_contributions(model, IDS, [target])
    assert not ((found.group_P == group) & (found.expert_P == expert)).any()
    keep[other_group, other // E, other % E] = 0.5
    model.set_expert_mask(ExpertMask(keep))
    halved = gradient_contributions(model, IDS, [target])
    before, after = (one.weight_P[(one.group_P == other_group) & (one.expert_P == other)] for one in (found, halved))
    assert len(after) == len(before) > 0 and torch.allclose(after[0], before[0] / 2)


def test_contributions_leave_the_model_unchanged(model):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient_contributions(model, IDS, [2])
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_mask_is_compared_token_by_token(model):
    mask = ExpertMask.random(model.config, 200, seed=0)
    found = mask_effect(model, IDS, mask, count=3)
    assert torch.allclose(found.before_T.double(), log_probabilities(model, IDS), atol=1e-6)
    assert torch.allclose(found.after_T.double(), log_probabilities(model, IDS, mask), atol=1e-6)
    assert found.top_before_TK.shape == (len(IDS), 3) and (found.divergence_T > 0).any()
    nothing = mask_effect(model, IDS, ExpertMask.keep_all(model.config))
    assert torch.equal(nothing.divergence_T, torch.zeros(len(IDS)))
    assert torch.equal(nothing.top_before_TK, nothing.top_after_TK)


def test_texts_and_targets_are_checked(model):
    with pytest.raises(ConfigError, match="at least two"):
        leave_one_out(model, [3], [])
    with pytest.raises(ConfigError, match="target 6"):
        gradient_contributions(model, IDS, [6])
