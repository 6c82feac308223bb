"""Records of a result: the origin of its masks, and kept losses that belong to the given masks."""

from dataclasses import replace

import numpy as np
import pytest

from monet.errors import ConfigError
from monet.eval.ablation.measure import ablate
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import collect
from monet.eval.core.controls import Controls
from monet.eval.core.window_losses import LossStore
from monet.eval.reporting import markdown
from monet.eval.reporting.command import report_of
from monet.masks.expert_mask import ExpertMask


@pytest.fixture
def selected(planted_model, planted_data):
    return select(collect(planted_model, planted_data, progress=False))


def origin(model, masks, data, out):
    result = ablate(model, masks, data, out=out, controls=Controls(1), control_on="target", progress=False)
    return result.provenance["held_out"], markdown.render(report_of(result))


def test_masks_made_from_masks_chosen_on_the_text_are_not_held_out(planted_model, selected, planted_data, tmp_path):
    unknown = ExpertMask.keep_all(planted_model.config)
    masks = {"left": ~~selected["left"] & unknown, "right": selected["right"]}
    held_out, text = origin(planted_model, masks, planted_data, tmp_path)
    assert held_out is False
    assert "**The masks were chosen on the text they are evaluated on, so they look better than they are.**" in text


def test_a_mask_of_unknown_origin_is_not_called_held_out(planted_model, planted_data, tmp_path):
    masks = {"left": ExpertMask.random(planted_model.config, 3, seed=0)}
    held_out, text = origin(planted_model, masks, planted_data, tmp_path)
    assert held_out is None and "no record of the text" in text


def test_masks_of_another_text_are_held_out(planted_model, selected, planted_data, tmp_path):
    other = replace(planted_data, sequences=[[*ids, ids[-1]] for ids in planted_data.sequences])
    held_out, text = origin(planted_model, selected, other, tmp_path)
    assert held_out is True and "another split" in text


def test_losses_are_not_kept_while_another_mask_is_applied(random_model, tmp_path):
    mask = ExpertMask.random(random_model.config, 5, seed=0)
    with mask.applied_to(random_model), pytest.raises(ConfigError, match="already applied"):
        LossStore(tmp_path, random_model, 8)
    assert LossStore(tmp_path, random_model, 8).settings["versions"].keys() >= {"monet", "torch", "transformers"}


def test_no_two_draws_share_a_stream(planted_model, selected, planted_data, tmp_path, monkeypatch):
    streams = []
    make = np.random.default_rng
    monkeypatch.setattr("numpy.random.default_rng", lambda seed: (streams.append(tuple(seed)), make(seed))[1])
    ablate(planted_model, selected, planted_data, out=tmp_path, controls=Controls(2), progress=False)
    domains, choices = {s for s in streams if len(s) == 3}, {s for s in streams if len(s) == 2}
    assert len(domains) == 3 and len(choices) == 1 and domains | choices == set(streams)
