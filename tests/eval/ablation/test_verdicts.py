"""Increases with their resamples: the same numbers as in an ablation."""

from __future__ import annotations

import numpy as np
import pytest

from monet import ExpertMask
from monet.eval.ablation.measure import ablate
from monet.eval.ablation.verdicts import increases
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.controls import Controls
from monet.eval.core.inputs import LabelledSequences
from monet.eval.core.window_losses import window_losses
from tests.eval.conftest import LABELS


@pytest.fixture
def masks(planted_model) -> dict[str, ExpertMask]:
    """The expert that serves each label."""
    return {
        label: ExpertMask.from_removed(planted_model.config, {0: [place * 16 + place]})
        for place, label in enumerate(LABELS)
    }


def test_increases_are_those_of_an_ablation(planted_model, planted_data, masks, tmp_path):
    bootstrap = Bootstrap()
    wanted = ablate(
        planted_model, masks, planted_data, out=tmp_path, controls=Controls(1), bootstrap=bootstrap, progress=False
    )
    assert wanted is not None
    whole = window_losses(planted_model, None, planted_data)
    found = increases(
        LABELS,
        whole,
        {label: window_losses(planted_model, mask, planted_data) for label, mask in masks.items()},
        bootstrap,
    )
    for row, label in enumerate(LABELS):
        for column, domain in enumerate(LABELS):
            assert found[label][domain].estimate(bootstrap) == wanted.delta[row][column]
    assert [found[""][domain].estimate(bootstrap) for domain in LABELS] == [one.loss for one in wanted.evaluated]


@pytest.mark.parametrize("present", [["right"], ["middle", "right"]])
def test_increases_of_some_domains_need_their_windows_only(
    planted_model, planted_data: LabelledSequences, masks, present
):
    """A label's number can differ from its position among the existing domains."""
    part = planted_data.only(present)
    whole, removed = (window_losses(planted_model, mask, part) for mask in (None, masks["right"]))
    found = increases(present, whole, {"right": removed}, Bootstrap())["right"]
    assert list(found) == present and found["right"].value > 0.1
    assert all(abs(found[name].value) < 1e-3 for name in present if name != "right")
    assert all(np.isfinite(one.draws_Q).all() for one in found.values())
