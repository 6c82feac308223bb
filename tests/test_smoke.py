"""The recorded numbers of tests/smoke.py are reproduced, and a wrong number is detected."""

from __future__ import annotations

import pytest
import torch

from tests import smoke
from tests.model.tiny import FORMS


@pytest.mark.parametrize("form", FORMS)
def test_recorded_numbers_hold(form):
    assert len(smoke.check(form)) == 3


def test_a_changed_weight_is_noticed(monkeypatch):
    model = smoke.formula_model("vertical")
    with torch.no_grad():
        model.lm_head.weight[5, 3] += 0.05
    monkeypatch.setattr(smoke, "formula_model", lambda form: model)
    with pytest.raises(AssertionError, match="vertical logits"):
        smoke.check("vertical")
