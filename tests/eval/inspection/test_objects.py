"""Objects for notebooks: what they say, and that their displays show text and never run it."""

from __future__ import annotations

import sys

import pytest
import torch

import monet
from monet.errors import CheckpointError, ConfigError
from monet.eval.index.tokens import TokenTexts
from monet.eval.inspection.html import marked, text
from tests.eval.index.conftest import E, make_data, make_index, make_model

HOSTILE = "<script>alert(1)</script>\u202eevil\x00\ud800'\""


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def look(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("look") / "index"
    make_index(model, make_data(), folder)
    return monet.inspect(model, folder)


def busiest(look):
    rows = look.index.table(["group", "i", "j", "count"], [("kind", "==", "pair")]).to_pylist()
    row = max(rows, key=lambda one: one["count"])
    return look.expert(row["group"], row["i"], row["j"])


def test_an_expert_shows_its_numbers(look):
    expert = busiest(look)
    assert int(expert.histogram.sum()) == expert.row["count"] > 0
    assert expert.contexts[0].weight == pytest.approx(expert.row["max"])
    assert len({one.window for one in expert.contexts}) == len(expert.contexts)
    assert all(one.interval is not None for one in expert.samples)
    assert list(expert.label_means) == ["left", "middle", "right"]
    assert max(expert.label_means, key=expert.label_means.__getitem__) == expert.row["best_label"]
    assert expert.weights(expert.contexts[0])[expert.contexts[0].position] == pytest.approx(expert.contexts[0].weight)
    assert len(expert.promoted(3)) == len(expert.suppressed(3, how="measured")) == 3
    assert expert.mask().num_removed == 1 and look.half(0, j=2).mask().num_removed == E
    expert.mask().check_fits(look.model)
    assert look.named(expert.unit.name).unit == expert.unit


def test_neighbours_are_ordered_by_their_similarity(look):
    expert = busiest(look)
    own = {one.window for one in expert.contexts}
    for neighbour in expert.neighbours(by="contexts", count=5):
        other = {one.window for one in neighbour.expert.contexts}
        assert neighbour.similarity == pytest.approx(len(own & other) / len(own | other))
    means = torch.tensor(list(expert.label_means.values()), dtype=torch.float64)
    for neighbour in expert.neighbours(by="labels", count=5):
        other = torch.tensor(list(neighbour.expert.label_means.values()), dtype=torch.float64)
        assert neighbour.similarity == pytest.approx(float(torch.cosine_similarity(means, other, dim=0)))
        assert neighbour.expert.unit != expert.unit
    for neighbour in expert.neighbours(by="key"):
        assert (neighbour.expert.unit.i == expert.unit.i) != (neighbour.expert.unit.j == expert.unit.j)
    found = [one.similarity for one in expert.neighbours(by="labels", count=50)]
    assert found == sorted(found, reverse=True)
    half = look.half(0, i=1)
    assert all(one.expert.unit.kind == "first" for one in half.neighbours())
    with pytest.raises(ConfigError, match="half"):
        half.neighbours(by="key")


def test_frames_have_one_row_for_each_context(look):
    expert = busiest(look)
    frame = expert.frame()
    assert len(frame) == len(expert.contexts) + len(expert.samples)
    assert frame["interval"].isna().sum() == len(expert.contexts)
    assert len(look.frame(["group", "count"])) == 2 * look.index.units.per_group


def test_frames_without_pandas_name_the_fix(look, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="frames"):
        look.frame(["group"])


def test_displays_escape_hostile_text(look, monkeypatch):
    monkeypatch.setattr(TokenTexts, "text_of", lambda self, token: HOSTILE)
    monkeypatch.setattr(look.index, "texts", TokenTexts())
    shown = busiest(look)._repr_html_() + look._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert not {"\u202e", "\x00", "\ud800"} & set(shown)
    shown.encode("utf-8")
    assert "<mark>" in shown and "'" not in str(text(HOSTILE)) and "<i>" not in str(marked(["<i>"], 0))


def test_another_model_is_refused(look):
    other = make_model()
    with torch.no_grad():
        other.lm_head.weight.neg_()
    other.model.layers[0].self_attn.q_proj.weight.data.neg_()
    with pytest.raises(CheckpointError, match="not of this one"):
        monet.inspect(other, look.index.folder)
    alone = monet.inspect(None, look.index)
    assert busiest(alone).contexts
    with pytest.raises(ConfigError, match="needs the model"):
        busiest(alone).promoted()


def test_statistics_of_an_index_are_those_of_a_pass(look, model):
    from monet.eval.attribution.stats import collect

    wanted, found = collect(model, make_data(), progress=False), look.index.statistics()
    assert torch.allclose(found.sums_CREE, wanted.sums_CREE, atol=1e-6)
    assert torch.equal(found.tokens_C, wanted.tokens_C) and found.labels == wanted.labels
    with pytest.raises(CheckpointError, match="twice"):
        found.merge(found)
