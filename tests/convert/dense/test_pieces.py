"""Starts from pieces of the MLP."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from monet.convert.dense.pieces import (
    assigned_groups,
    balanced_groups,
    fitted_scales,
    head_scales,
    start_at_random,
    start_from_pieces,
)
from monet.convert.dense.stand_in import StandIn
from monet.errors import ConfigError
from tests.model.tiny import FORMS, tiny_config
from tests.tolerances import assert_close

D, N = 24, 60


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [1, 4, 7, 12, 60])
def test_groups_are_balanced_for_every_number(count):
    groups = balanced_groups(torch.rand(100, N, generator=seeded()), count, seeded())
    assert sorted(torch.cat(groups).tolist()) == list(range(N))
    assert {len(group) for group in groups} <= {N // count, -(-N // count)}


def test_more_groups_than_neurons_are_refused():
    with pytest.raises(ConfigError, match="only 60 neurons"):
        balanced_groups(torch.rand(100, N), 61, seeded())


def planted(parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activity of neurons in `parts` groups with one source each, mixed up, and the group of each neuron."""
    owner_N = torch.arange(N)[torch.randperm(N, generator=seeded(1))] % parts
    sources = torch.rand(500, parts, generator=seeded(2)) ** 4
    return sources[:, owner_N] + 0.05 * torch.rand(500, N, generator=seeded(3)), owner_N


def test_neurons_that_are_active_together_form_a_group():
    strength_TN, owner_N = planted(4)
    for group in balanced_groups(strength_TN, 4, seeded()):
        assert len(set(owner_N[group].tolist())) == 1


def test_neurons_join_the_given_key_that_they_follow():
    strength_TN, owner_N = planted(5)
    weights_TE = torch.stack([strength_TN[:, owner_N == part].mean(1) for part in range(5)], 1)
    groups = assigned_groups(strength_TN, weights_TE)
    assert [sorted(group.tolist()) for group in groups] == [
        torch.where(owner_N == part)[0].tolist() for part in range(5)
    ]


def test_heads_differ_in_the_keys_that_they_use():
    own, permuted, shared = (head_scales(heads, 32, 4) for heads in ("own", "permuted", "shared"))
    assert own.shape == (2, 4, 32)
    for scales in (own, permuted, shared):
        assert torch.equal((scales == 1).sum(1), torch.ones(2, 32, dtype=torch.int64))  # each key has one owner
        assert torch.equal((scales == 1).sum(2), torch.full((2, 4), 8))
    assert torch.equal(own[0], own[1]) and torch.equal(own[0], permuted[0])
    both = (permuted[0] == 1) & (permuted[1] == 1)
    assert torch.equal(both.sum(1), torch.full((4,), 2))
    assert shared.min() == 0.25 and own.min() < 0.1


def test_scales_are_those_of_least_squares():
    features_TP, columns_DP = torch.randn(200, 6, generator=seeded()), torch.randn(5, 6, generator=seeded(1))
    y_TD = torch.randn(200, 5, generator=seeded(2))
    design = torch.einsum("tp,dp->tdp", features_TP, columns_DP).flatten(0, 1)
    expected = torch.linalg.lstsq(design, y_TD.flatten()[:, None]).solution[:, 0]
    assert (fitted_scales(features_TP, columns_DP, y_TD) - expected).abs().max() < 5e-3 * expected.abs().max()


def mlp_and_sample(act: str = "silu") -> tuple[LlamaMLP, torch.Tensor, torch.Tensor]:
    """An MLP whose neurons are sparse and active in groups, and a sample."""
    config = LlamaConfig(hidden_size=D, intermediate_size=N, num_attention_heads=4, hidden_act=act)
    mlp = LlamaMLP(config).requires_grad_(False)
    directions = torch.randn(6, D, generator=seeded(4))
    rows = directions[torch.arange(N) % 6] + 0.4 * torch.randn(N, D, generator=seeded(5))
    mlp.gate_proj.weight.copy_(rows)
    mlp.up_proj.weight.copy_(0.3 * torch.randn(N, D, generator=seeded(6)))
    mlp.down_proj.weight.copy_(torch.randn(D, N, generator=seeded(7)))
    x_TD = 0.5 * torch.randn(3000, D, generator=seeded(8)) + 0.3 * torch.randn(D, generator=seeded(9))
    return mlp, x_TD, mlp(x_TD)


def start_fvu(form: str, init: str, heads: str = "own", **changes) -> float:
    mlp, x_TD, y_TD = mlp_and_sample()
    stand_in = StandIn(tiny_config(form, **changes))
    stand_in.standardise(x_TD[:2000], y_TD[:2000])
    if init == "pieces":
        start_from_pieces(stand_in, mlp, x_TD[:2000], y_TD[:2000], heads, seeded())
    else:
        start_at_random(stand_in, x_TD[:2000], y_TD[:2000], seeded())
    stand_in.eval()
    with torch.no_grad():
        error = (stand_in(x_TD[2000:]) - y_TD[2000:]).square().sum()
    return float(error / (y_TD[2000:] - y_TD[2000:].mean(0)).square().sum())


@pytest.mark.parametrize("form, moe_dim, most", [("vertical", 40, 0.75), ("horizontal", 20, 0.99)])
@pytest.mark.parametrize("heads", ["own", "permuted", "shared"])
def test_pieces_explain_variance_before_any_training(form, moe_dim, most, heads):
    fvu = start_fvu(form, "pieces", heads, moe_dim=moe_dim)
    assert fvu < most < start_fvu(form, "random", moe_dim=moe_dim)


def test_units_that_are_left_over_change_nothing_at_the_start():
    assert start_fvu("vertical", "pieces", moe_dim=44) == pytest.approx(
        start_fvu("vertical", "pieces", moe_dim=40), rel=1e-3
    )


def test_too_few_units_keep_the_strongest_neurons():
    assert start_fvu("vertical", "pieces", moe_dim=40) < start_fvu("vertical", "pieces", moe_dim=20) < 1


@pytest.mark.parametrize("form", FORMS)
def test_with_all_keys_active_the_pairs_follow_the_neurons(form):
    """One head with all keys and a uniform router: the only error is that of the squared pairs."""
    mlp, x_TD, y_TD = mlp_and_sample()
    changes = {"moe_heads": 1, "moe_experts": 1, "moe_topk": 1, "moe_dim": 4 * N if form == "vertical" else 2 * N}
    stand_in = StandIn(tiny_config(form, **changes))
    stand_in.standardise(x_TD, y_TD)
    start_from_pieces(stand_in, mlp, x_TD, y_TD, "own", seeded())
    with torch.no_grad():
        out_TD = stand_in.eval()(x_TD)
    fvu = (out_TD - y_TD).square().sum() / (y_TD - y_TD.mean(0)).square().sum()
    assert fvu < 0.3
    assert_close("the output", out_TD.mean(0), y_TD.mean(0))


def test_a_start_is_the_same_every_time():
    assert start_fvu("vertical", "pieces", moe_dim=40) == start_fvu("vertical", "pieces", moe_dim=40)
