"""Masks in exported programs: batch and length stay dynamic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monet import ExpertMask, MonetForCausalLM
from tests.marks import nightly
from tests.model.tiny import FORMS, tiny_config, tiny_model, tokens
from tests.tolerances import assert_close

CONFIG = tiny_config()
MASKS = {
    "hard": ExpertMask.random(CONFIG, 40, seed=0),
    "soft": ExpertMask(torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))),
    "one a sequence": [ExpertMask.random(CONFIG, 40, seed=1), None],
}


class Logits(nn.Module):
    def __init__(self, model: MonetForCausalLM, mask: ExpertMask | list) -> None:
        super().__init__()
        self.model, self.mask = model, mask

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids, use_cache=False, expert_mask=self.mask).logits


def nightly_but(quick: str, all_of: Iterable[str]) -> list[Any]:
    return [name if name == quick else nightly(name) for name in all_of]


@pytest.mark.parametrize("kind", nightly_but("hard", MASKS))
@pytest.mark.parametrize("form", nightly_but("vertical", FORMS))
def test_a_masked_program_takes_other_sizes(form, kind):
    mask, B = MASKS[kind], 2 if kind == "one a sequence" else 3
    sizes = {1: torch.export.Dim("length", min=2, max=32)}
    if B == 3:
        sizes[0] = torch.export.Dim("batch", min=2, max=8)
    with torch.no_grad():
        program = torch.export.export(
            Logits(tiny_model(form), mask), (tokens(2, 9),), dynamic_shapes={"input_ids": sizes}
        )
        ids = tokens(B, 13)
        wanted = tiny_model(form)(ids, use_cache=False, expert_mask=mask).logits
    assert_close("logits", program.module()(ids), wanted)
