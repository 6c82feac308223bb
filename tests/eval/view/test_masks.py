"""Collections become masks, and masks become folders that other commands read."""

import shutil

import numpy as np
import pytest
import torch

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.selection import load_masks
from monet.eval.view.masks import Collection
from monet.masks.expert_mask import ExpertMask
from tests.eval.index.conftest import E
from tests.eval.view.conftest import make_store


def test_a_collection_is_rules_and_names(store):
    masks, browser = store.masks, store.browser
    label = browser.labels[0]
    rule = {"label": label, "min.label_ratio": "2"}
    removed_RN = masks.resolved(Collection(rules=[rule]), browser)
    chosen = [
        row
        for row in map(store.row, range(len(store.columns)))
        if row["kind"] == "pair" and row["label"] == label and row["label_ratio"] >= 2
    ]
    assert removed_RN.sum() == len(chosen) > 0
    assert all(removed_RN[row["group"], row["i"] * E + row["j"]] for row in chosen)
    half = masks.resolved(Collection(add=["1:i3"], drop=["1:50"]), browser)
    assert half.sum() == E - 1 and half[1, 48:64].sum() == E - 1 and not half[1, 50]
    with pytest.raises(ConfigError, match="expert ids 0 to 255"):
        masks.resolved(Collection(add=["0:999999"]), browser)
    assert not masks.resolved(Collection(), browser).any()
    of_halves = masks.resolved(Collection(rules=[{"kind": "half", "group": "0", "min.count": "0"}]), browser)
    assert of_halves[0].all() and not of_halves[1].any()


def test_weights_are_those_of_the_removed_experts(store):
    removed_RN = store.masks.resolved(Collection(add=["0:i3"]), store.browser)
    half = store.index.label_means(store.unit("0:i3"))
    heads, groups = store.index.info.model.heads, store.index.units.groups
    for label, share in store.masks.weights(removed_RN).items():
        assert share == pytest.approx(half[label] / heads / groups, abs=1e-6)


def test_a_saved_mask_is_read_by_other_commands(store, view_model):
    collection = Collection(add=["0:i3", "1:7"])
    removed_RN = store.masks.resolved(collection, store.browser)
    folder = store.masks.save("my mask", "left", removed_RN, collection, overwrite=False)
    ((label, mask),) = load_masks(folder, view_model).items()
    assert label == "left" and mask.num_removed == E + 1
    assert torch.equal(mask.keep_REE.flatten(1), torch.from_numpy(~removed_RN))
    assert mask.provenance["statistics"]["parts"] and mask.provenance["collection"]["add"] == ["0:i3", "1:7"]
    assert store.masks.removing(store.unit("1:7")) == ["my mask"] == store.masks.removing(store.unit("0:i3"))
    assert store.masks.removing(store.unit("0:j3")) == []


def test_no_mask_is_overwritten_unasked(store):
    removed_RN = np.zeros((2, E * E), bool)
    removed_RN[0, 3] = True
    folder = store.masks.save("one", "left", removed_RN, Collection(), overwrite=False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError):
        store.masks.save("one", "left", ~removed_RN, Collection(), overwrite=False)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    store.masks.save("one", "<b>middle</b>", ~removed_RN, Collection(), overwrite=True)
    assert list(load_masks(folder)) == ["<b>middle</b>"] and len(list(folder.iterdir())) == 2
    (store.masks.out / "other").mkdir()
    (store.masks.out / "other" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="not an earlier selection"):
        store.masks.save("other", "left", removed_RN, Collection(), overwrite=True)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "a\x00", ".hidden", "x" * 80, "a\n", "-x"])
def test_names_are_no_paths(store, name):
    with pytest.raises(ConfigError, match="name"):
        store.masks.path(name)


def test_an_empty_mask_or_an_unknown_label_is_refused(store):
    with pytest.raises(ConfigError, match="empty"):
        store.masks.save("a", "left", np.zeros((2, E * E), bool), Collection(), overwrite=False)
    with pytest.raises(ConfigError, match="label"):
        store.masks.save("a", "wrong", np.ones((2, E * E), bool), Collection(), overwrite=False)


def test_masks_of_folders_have_names(store, view_model, view_folder, tmp_path):
    removed_RN = store.masks.resolved(Collection(add=["0:3"]), store.browser)
    folder = store.masks.save("given", "left", removed_RN, Collection(), overwrite=False)
    again = make_store(view_model, view_folder, tmp_path, masks=[folder])
    assert again.masks.names == ["left"] and again.masks.counts() == {"left": [1, 0]}
    assert again.expert(again.unit("0:3"))["masks"] == ["left"] and not again.expert(again.unit("0:4"))["masks"]
    twice = make_store(view_model, view_folder, tmp_path, masks=[folder, folder])
    assert twice.masks.names == ["left"]
    with pytest.raises(ConfigError, match="known mask"):
        again.masks.save("left", "left", ~removed_RN, Collection(), overwrite=False)
    assert again.masks.counts() == {"left": [1, 0]}
    copy = shutil.copytree(folder, tmp_path / "copy" / "given")
    both = make_store(view_model, view_folder, tmp_path, masks=[folder, copy])
    assert both.masks.names == ["given/left", "given 2/left"]
    other = ExpertMask(torch.ones(2, E, E, dtype=torch.bool), fingerprint="another")
    with pytest.raises(CheckpointError, match="another model"):
        again.masks.add("x", other)
