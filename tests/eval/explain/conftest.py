"""An index in which the truth is known: label d has the tokens 4d to 4d+3, and only they activate expert (d, d)."""

from __future__ import annotations

import shutil

import pytest
import torch

from monet.eval.core.inputs import LabelledSequences
from monet.eval.index.build import Wanted, build
from monet.eval.index.index import Index
from tests.eval.conftest import LABELS

PLANTED = [17 * d for d in range(3)]


@pytest.fixture
def planted(planted_model, tmp_path, tmp_path_factory) -> Index:
    """An index of the planted model, over 60 documents of one window each; made once, and copied for each test."""
    made = tmp_path_factory.getbasetemp() / "planted" / "index"
    if not made.exists():
        _make(planted_model, made)
    shutil.copytree(made, tmp_path / "index")
    return Index(tmp_path / "index", planted_model)


def _make(model, folder) -> None:
    generator = torch.Generator().manual_seed(4)
    sequences = [(4 * (n % 3) + torch.randint(4, (12,), generator=generator)).tolist() for n in range(60)]
    documents = [f"document {n}" for n in range(60)]
    data = LabelledSequences(LABELS, sequences, [n % 3 for n in range(60)], documents=documents)
    build(model, data, folder, wanted=Wanted(top=16), progress=False)


@pytest.fixture
def units(planted) -> list:
    """The three experts that fire."""
    return [planted.units.unit(0, number) for number in PLANTED]
