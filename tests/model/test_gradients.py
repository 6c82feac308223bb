"""Gradients of a whole model by the lean backward, compared with plain autograd over every operation."""

from __future__ import annotations

import pytest
import torch

from monet.kernels import limits
from monet.model.losses import RouterLoss
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import assert_close


def gradients(form: str, router_loss: RouterLoss | None, dtype: torch.dtype, train: bool) -> dict[str, torch.Tensor]:
    model = tiny_model(form, moe_heads=2).to(dtype).train(train)
    ids = tokens(2, 9)
    out = model(ids, labels=ids, router_loss=router_loss)
    out.loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("target", [None, "routing", "softmax", "firing"])
def test_lean_backward_is_autograd(form, dtype, train, target, monkeypatch):
    router_loss = None if target is None else RouterLoss(0.1, 0.1, target)
    monkeypatch.setattr(limits, "LEAN_FROM_ELEMENTS", 1 << 40)
    wanted = gradients(form, router_loss, dtype, train)
    monkeypatch.setattr(limits, "LEAN_FROM_ELEMENTS", 0)
    got = gradients(form, router_loss, dtype, train)
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        assert_close(name, gradient, wanted[name])
