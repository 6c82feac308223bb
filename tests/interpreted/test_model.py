"""A whole small model, with Triton's and with torch's kernels: loss, gradients, statistics and generation agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from monet import ExpertMask, MonetConfig, MonetForCausalLM
from monet.model.losses import RouterLoss
from tests.kernels.explicit import set_sizes
from tests.tolerances import assert_close

IDS = torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(0))


def make_model(decompose: str) -> MonetForCausalLM:
    torch.manual_seed(0)
    config = MonetConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, moe_experts=10, moe_heads=2,
        moe_dim=4, moe_topk=3, moe_groups=2, moe_decompose=decompose, initializer_range=0.3, max_position_embeddings=64,
    )  # fmt: skip
    return MonetForCausalLM(config)


def results(decompose: str, mask: ExpertMask | None, checkpointing: bool = False) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics after one training step's forward and backward."""
    model = make_model(decompose).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    attention_mask = torch.ones_like(IDS)
    attention_mask[1, :2] = 0
    out = model(
        IDS, attention_mask=attention_mask, labels=IDS, router_loss=RouterLoss(), expert_mask=mask, use_cache=False
    )
    out.loss.backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    named |= {name: buffer.double() for name, buffer in model.named_buffers() if "running" in name}
    return {"loss": out.loss.detach()[None], **{name: tensor for name, tensor in named.items() if tensor is not None}}


def steps() -> Iterator[Any]:
    """Every case of a step; the default run has those that use most kernels."""
    for case in itertools.product(["horizontal", "vertical"], [False, True], [False, True]):
        yield pytest.param(*case, marks=() if all(case[1:]) else pytest.mark.slow)


@pytest.mark.parametrize(("decompose", "masked", "checkpointing"), steps())
def test_training_step(decompose, masked, checkpointing, monkeypatch):
    set_sizes(monkeypatch)
    mask = ExpertMask.random(make_model(decompose).config, 30, seed=1) if masked else None
    got = results(decompose, mask, checkpointing)
    monkeypatch.setenv("MONET_KERNELS", "torch")
    wanted = results(decompose, mask)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # float32 rounding accumulates over the whole network: ten times the table
        assert torch.isfinite(got[name]).all(), name
        error = (got[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-12)
        assert error < 2e-5, (name, float(error))


@pytest.mark.parametrize("decompose", ["horizontal", "vertical"])
def test_generation(decompose, monkeypatch):
    model = make_model(decompose).eval()
    masks = [None, ExpertMask.random(model.config, 30, seed=1)]
    tokens, logits = [], []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("MONET_KERNELS", backend)
        tokens.append(model.generate(IDS, max_new_tokens=4, do_sample=False, expert_mask=masks))
        with torch.no_grad():
            logits.append(model(IDS, expert_mask=masks).logits)
    assert torch.equal(*tokens)
    assert_close("logits", *logits)
