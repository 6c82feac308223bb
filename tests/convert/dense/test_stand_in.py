"""A folded stand-in is the same function: the same keys, and outputs equal up to rounding."""

from __future__ import annotations

import pytest
import torch

from monet.convert.dense.stand_in import StandIn, build_stand_ins, power_of_two
from monet.model.experts import EXPERTS
from monet.model.router import MonetRouter
from tests.model.tiny import FORMS, fill, tiny_config
from tests.tolerances import assert_close

D, T = 24, 50


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with unequal scales and a mean, and outputs of another scale."""
    generator = torch.Generator().manual_seed(seed)
    scale_D = torch.exp(torch.randn(D, generator=generator))
    x_TD = torch.randn(T, D, generator=generator) * scale_D + 3 * torch.randn(D, generator=generator)
    return x_TD, 7 * torch.randn(T, D, generator=generator)


def trained(stand_in: StandIn, x_TD: torch.Tensor, y_TD: torch.Tensor) -> StandIn:
    """A stand-in with random weights, statistics that followed some batches, and coordinates of a sample."""
    fill(stand_in.experts)
    if stand_in.router is not None:
        fill(stand_in.router)
    stand_in.standardise(x_TD, y_TD)
    stand_in.train()
    for _ in range(3):
        stand_in(x_TD)
    return stand_in.eval()


def released(stand_in: StandIn, config) -> tuple[MonetRouter, torch.nn.Module]:
    router, experts = MonetRouter(config).eval(), EXPERTS[config.moe_decompose](config).eval()
    tensors = stand_in.folded()
    parts = [{name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}
             for start in ("router.", "moe.")]  # fmt: skip
    router.load_state_dict(parts[0])
    experts.load_state_dict(parts[1])
    return router, experts


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_folded_layer_chooses_the_same_keys_and_gives_the_same_outputs(form):
    config, (x_TD, y_TD) = tiny_config(form), sample()
    stand_in = trained(StandIn(config), x_TD, y_TD)
    router, experts = released(stand_in, config)
    out_TD = stand_in(x_TD)
    routed = router(x_TD[None])
    for ours, theirs in zip(stand_in.routed.gates, routed.gates, strict=True):
        assert torch.equal(ours, theirs)
    assert (routed.gates[0] == 0).sum() > 0
    assert_close("the output", experts(x_TD[None], *routed.gates)[0], out_TD)


@torch.no_grad()
def test_a_layer_without_a_router_uses_the_keys_of_its_leader():
    config, (x_TD, y_TD) = tiny_config(), sample()
    first, second = build_stand_ins(config, [[2, 5]]).values()
    trained(first, x_TD, y_TD)
    fill(second.experts, seed=1)
    second.standardise(*sample(1))
    second.eval()
    first(x_TD)
    out_TD = second(sample(1)[0])
    assert second.router is None and not any(name.startswith("router") for name in second.folded())
    assert second.routed is first.routed
    assert not any("router" in name for name, _ in second.named_parameters())
    experts = EXPERTS["vertical"](config).eval()
    experts.load_state_dict({name.removeprefix("moe."): tensor for name, tensor in second.folded().items()})
    assert_close("the output", experts(sample(1)[0][None], *first.routed.gates)[0], out_TD)


def test_scales_are_powers_of_two():
    values = torch.tensor([0.3, 1.0, 1.4, 1.5, 90.0, 0.0])
    assert power_of_two(values).tolist() == [0.25, 1.0, 1.0, 2.0, 64.0, 2.0**-20]
