"""Models with 16 keys a side, text in memory, and what an index of them must hold, by loops over explicit experts."""

from __future__ import annotations

import pytest
import torch

from monet import MonetForCausalLM
from monet.eval.core.inputs import LabelledSequences
from monet.eval.index.build import Wanted, build
from tests.eval.conftest import LABELS, config

E = 16
VOCABULARY = 24


def make_model(**changes) -> MonetForCausalLM:
    """A random model whose routers let a few keys through."""
    torch.manual_seed(1)
    model = MonetForCausalLM(config(moe_experts=E, initializer_range=0.3, **changes)).eval()
    for router in model.routers():
        for norm in (router.norm1, router.norm2):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.2, 0.5)
    return model


@pytest.fixture(params=["vertical", "horizontal", "hybrid"])
def model(request) -> MonetForCausalLM:
    """Three layers in two routing groups, the first of two layers; a hybrid has a dense layer in between."""
    if request.param == "hybrid":
        return make_model(num_hidden_layers=4, dense_layers=[1], intermediate_size=20)
    return make_model(moe_decompose=request.param)


def make_data(count: int = 40, equal: bool = False) -> LabelledSequences:
    """Sequences of 3 to 11 tokens, or of 8; some of them are equal, so their weights tie."""
    generator = torch.Generator().manual_seed(2)
    lengths = [8] * count if equal else torch.randint(3, 12, (count,), generator=generator).tolist()
    sequences = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    for copy, original in ((5, 2), (17, 2), (30, 9)):
        sequences[copy] = list(sequences[original])
    documents = [str(number // 3) for number in range(count)]
    return LabelledSequences(LABELS, sequences, [n * 3 // count for n in range(count)], documents=documents)


@pytest.fixture(params=[False, True], ids=["ragged", "equal"])
def data(request) -> LabelledSequences:
    return make_data(equal=request.param)


def all_weights(model, data) -> dict[int, list[torch.Tensor]]:
    """For each group, the float64 weights of all units at each token of each sequence, (T, U) by sequence."""
    found: dict[int, list[torch.Tensor]] = {}
    for sequence in data.sequences:
        with torch.no_grad():
            probs = model(torch.tensor([sequence]), output_router_probs=True).router_probs
        for group, (g1, g2) in enumerate([pair for pair in probs if pair is not None]):
            g1, g2 = g1[0].double(), g2[0].double()
            w_TU = torch.cat([torch.einsum("thi,thj->tij", g1, g2).flatten(1), g1.sum(1), g2.sum(1)], dim=1)
            found.setdefault(group, []).append(w_TU)
    return found


def make_index(model, data, out, **options):
    options = {"wanted": Wanted(top=4), "progress": False, **options}
    return build(model, data, out, **options)


def content(folder) -> dict[str, bytes]:
    """All files of a folder with their bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
