"""The divergence from a teacher equals the plain formula, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from monet.model import distillation
from monet.model.distillation import kl_divergence
from tests.tolerances import assert_close

B, T, V, D = 2, 300, 50, 8


def plain(logits_BTV, states_BTD, head_VD, labels_BT, temperature):
    log_p = (states_BTD.double() @ head_VD.double().T / temperature).log_softmax(-1)
    log_q = (logits_BTV / temperature).log_softmax(-1)
    counts_BT = labels_BT != -100
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * counts_BT).sum() / counts_BT.sum() * temperature**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_value_and_gradient_equal_the_plain_formula(temperature, dtype):
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(B, T, V, generator=generator).to(dtype).requires_grad_()
    states_BTD, head_VD = torch.randn(B, T, D, generator=generator), torch.randn(V, D, generator=generator)
    labels_BT = torch.randint(V, (B, T), generator=generator)
    labels_BT[0, :7] = -100
    found = kl_divergence(logits_BTV, states_BTD, head_VD, labels_BT, temperature)
    (3 * found).backward()
    exact_BTV = logits_BTV.detach().double().requires_grad_()
    wanted = plain(exact_BTV, states_BTD, head_VD, labels_BT, temperature)
    (3 * wanted).backward()
    assert_close("value", found, wanted.float())
    assert_close("gradient", logits_BTV.grad, exact_BTV.grad.to(dtype), dtype)
    assert not logits_BTV.grad[0, :7].any()


def test_the_number_of_rows_at_once_changes_nothing_but_rounding(monkeypatch):
    logits_BTV, states_BTD, head_VD = torch.randn(B, T, V), torch.randn(B, T, D), torch.randn(V, D)
    labels_BT = torch.zeros(B, T, dtype=torch.int64)
    whole = kl_divergence(logits_BTV, states_BTD, head_VD, labels_BT)
    monkeypatch.setattr(distillation, "ROWS_AT_ONCE", 7)
    assert_close("value", kl_divergence(logits_BTV, states_BTD, head_VD, labels_BT), whole)


def test_without_labels_it_is_zero():
    logits_BTV = torch.randn(1, 3, V, requires_grad=True)
    found = kl_divergence(logits_BTV, torch.randn(1, 3, D), torch.randn(V, D), torch.full((1, 3), -100))
    found.backward()
    assert found.item() == 0 and not logits_BTV.grad.any()
