"""The intervention and the suite of docs/own-experiment.md run unchanged, and do what the page says."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from monet.eval.core.inputs import LabelledSequences
from monet.eval.core.intervention import Intervention
from monet.masks.expert_mask import ExpertMask
from tests.model.tiny import FORMS, tiny_model

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "own-experiment.md"
LETTERS = string.ascii_letters


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(params=FORMS, scope="module")
def page(request, tmp_path_factory) -> dict[str, Any]:
    model = tiny_model(request.param, vocab_size=len(LETTERS), max_position_embeddings=64)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(len(LETTERS), (12,), generator=generator).tolist() for _ in range(12)]
    names: dict[str, Any] = {
        "__name__": "example", "model": model, "out": tmp_path_factory.mktemp("out"),
        "prompts": [row[:3] for row in sequences[:2]],
        "data": LabelledSequences(["prose", "verse"], sequences, [number % 2 for number in range(12)]),
        "decode": lambda ids: "".join(LETTERS[token] for token in ids),
        "mask": ExpertMask.random(model.config, [9] * model.config.num_routing_groups, seed=0),
    }  # fmt: skip
    for block in blocks():
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    return names


def test_the_page_is_short_and_its_results_are_typed(page):
    assert sum(block.count("\n") for block in blocks()) < 150
    result = page["result"]
    assert set(result.p) == {"first head", "experts"} and all(0 < p <= 1 for p in result.p.values())
    assert isinstance(page["HeadMask"](page["keep_LH"]), Intervention)


def test_a_silenced_head_is_a_block_of_zeros(page):
    model, ids = page["model"], torch.arange(10)[None]
    mask = page["HeadMask"](page["keep_LH"])
    with torch.no_grad():
        before = model(ids).logits
        with mask.applied_to(model):
            masked = model(ids).logits
        assert torch.equal(model(ids).logits, before)
        projection = model.model.layers[0].self_attn.o_proj
        projection.weight[:, : projection.in_features // page["keep_LH"].shape[1]] = 0
        torch.testing.assert_close(masked, model(ids).logits)
    assert not torch.allclose(masked, before)
