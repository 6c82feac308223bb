"""The recorded logits equal the formulas in plain torch, and rounding cannot change any decision in them."""

from __future__ import annotations

import pytest
import torch

from monet.doctor import golden, tiny
from tests.doctor import plain


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize(
    ("recorded", "removed"),
    [(golden.LOGITS, None), (golden.LOGITS_WITHOUT_REMOVED, tiny.REMOVED)],
    ids=["all", "masked"],
)
def test_recorded_logits_are_the_formulas(form, recorded, removed):
    margins: list[float] = []
    state, ids = tiny.tiny_model(form).state_dict(), torch.tensor(tiny.TOKENS)
    wanted = plain.logits(state, tiny.CONFIG, form, ids, removed, margins)[0, -golden.POSITIONS :]
    got = torch.tensor([float(word) for word in recorded[form].split()], dtype=torch.float64)
    assert (got - wanted.flatten()).abs().max() <= 5.1e-7  # six decimals
    assert min(margins) > 1e-4


@pytest.mark.parametrize("form", tiny.FORMS)
def test_greedy_tokens_lead_clearly(form):
    state = tiny.tiny_model(form).state_dict()
    for prompt in tiny.PROMPTS:
        ids = torch.tensor([[token for token in prompt if token]])
        for _ in range(tiny.NEW_TOKENS):
            logits_BV = plain.logits(state, tiny.CONFIG, form, ids)[:, -1]
            logits_BV[:, tiny.CONFIG["eos_token_id"]] = -torch.inf
            first, second = logits_BV.topk(2).values[0]
            assert first - second > 0.01
            ids = torch.cat([ids, logits_BV.argmax(-1, keepdim=True)], 1)


def test_weights_have_the_same_bits_everywhere():
    drawn = tiny.values("model.layers.0.moe.u.weight", (3,))
    assert drawn.tolist() == [-0.0035364904906600714, 0.43217572569847107, -0.4837854504585266]
    everything = tiny.values("any", (1000,))
    assert 0.6 < everything.abs().max() <= 0.7 and everything.mean().abs() < 0.05
