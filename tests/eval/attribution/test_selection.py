import itertools
import json

import pytest
import torch

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.rules import Ratio
from monet.eval.attribution.selection import assign, load_masks, save_masks, select, summarise
from monet.eval.attribution.stats import collect
from tests.eval.conftest import LABELS


def owner_of(means: list[float], ratio: float) -> int:
    return int(assign(torch.tensor(means, dtype=torch.float64).view(-1, 1, 1, 1), ratio))


@pytest.mark.parametrize(
    ("means", "ratio", "owner", "why"),
    [
        ([4.0, 2.0, 1.0], 2.0, 0, "exactly twice the second is enough"),
        ([3.999, 2.0, 1.0], 2.0, -1, "just under twice is not"),
        ([1.0, 2.0, 4.1], 2.0, 2, "the order of labels does not matter"),
        ([0.0, 0.0, 0.0], 2.0, -1, "never active belongs to no label"),
        ([0.0, 0.0, 0.0], 1.0, -1, "never active belongs to no label, also at ratio 1"),
        ([0.0, 1e-12, 0.0], 2.0, 1, "active for only one label belongs to it"),
        ([0.0, 1e-12, 0.0], 1e9, 1, "at every ratio"),
        ([2.0, 2.0, 1.0], 1.0, -1, "equal firsts belong to no label"),
        ([2.0, 2.0, 0.0], 2.0, -1, "also if the third is zero"),
        ([2.0, 1.9, 1.0], 1.0, 0, "ratio 1 is most active"),
        ([3.0, 1.0], 2.0, 0, "two labels suffice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rule(means, ratio, owner, why):
    assert owner_of(means, ratio) == owner, why


def test_no_expert_has_two_owners_and_higher_ratios_select_subsets():
    means = torch.rand(4, 2, 6, 6, dtype=torch.float64)
    owners = [assign(means, ratio) for ratio in (1.0, 1.3, 2.0, 5.0)]
    for wider, narrower in itertools.pairwise(owners):
        owned = narrower >= 0
        assert 0 < owned.sum() < (wider >= 0).sum()
        assert torch.equal(narrower[owned], wider[owned])


@pytest.mark.parametrize("ratio", [0.99, 0.0, -2.0, float("nan"), float("inf")])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ConfigError, match="ratio"):
        owner_of([2.0, 1.0], ratio)


def test_one_label_cannot_be_compared():
    with pytest.raises(DataError, match="at least two"):
        owner_of([2.0], 2.0)


@pytest.fixture
def planted(planted_model, planted_data):
    return collect(planted_model, planted_data, progress=False)


def test_the_planted_expert_is_found_and_nothing_else(planted, planted_model):
    masks = select(planted)
    assert list(masks) == LABELS
    for label, mask in enumerate(masks.values()):
        keep = torch.ones(1, 16, 16, dtype=torch.bool)
        keep[0, label, label] = False
        assert torch.equal(mask.keep_REE, keep)
        assert mask.fingerprint == planted_model.fingerprint()
        assert mask.provenance["ratio"] == 2.0


def test_summary_counts(planted):
    masks = select(planted)
    summary = summarise(planted, masks, Ratio(2.0))
    assert (summary["experts"], summary["generalists"], summary["never_active"]) == (256, 253, 253)
    left = summary["labels"]["left"]
    assert left.pop("label_control")["experts"] == 1
    assert left == {"experts": 1, "share": 1 / 256, "experts_per_group": [1], "tokens": 100}


def test_saved_masks_load_the_same_and_are_checked(planted, planted_model, random_model, tmp_path):
    masks = select(planted)
    save_masks(tmp_path / "m", masks, summarise(planted, masks, Ratio(2.0)))
    loaded = load_masks(tmp_path / "m", model=planted_model)
    assert loaded == masks and list(loaded) == LABELS
    with pytest.raises(CheckpointError, match="left"):
        load_masks(tmp_path / "m", model=random_model)
    (tmp_path / "m" / "middle.safetensors").write_bytes((tmp_path / "m" / "left.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="middle"):
        load_masks(tmp_path / "m")


def test_one_mask_of_a_folder_can_be_named(planted, planted_model, tmp_path):
    masks = select(planted)
    save_masks(tmp_path / "m", masks, summarise(planted, masks, Ratio(2.0)))
    file = tmp_path / "m" / "left.safetensors"
    assert load_masks(file, model=planted_model) == {"left": masks["left"]}
    stranger = file.with_name("stranger.safetensors")
    stranger.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"stranger.*names no such mask"):
        load_masks(stranger)
    file.write_bytes((tmp_path / "m" / "middle.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"left.*changed since"):
        load_masks(file)


def test_labels_need_not_be_file_names(planted, tmp_path):
    masks = dict(zip(["c++", "../up", "law/tax"], select(planted).values(), strict=True))
    summary = summarise(planted, masks, Ratio(2.0))
    save_masks(tmp_path / "m", masks, summary)
    assert load_masks(tmp_path / "m") == masks
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path / "m"}


def test_an_earlier_selection_is_replaced_and_nothing_else(planted, tmp_path):
    masks = select(planted)
    summary = summarise(planted, masks, Ratio(2.0))
    save_masks(tmp_path / "m", masks, summary)
    save_masks(tmp_path / "m", {"left": masks["left"]}, {**summary, "labels": {"left": summary["labels"]["left"]}})
    assert list(load_masks(tmp_path / "m")) == ["left"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not an earlier selection"):
        save_masks(tmp_path / "other", masks, summary)


def test_a_killed_selection_is_not_read(planted, tmp_path):
    masks = select(planted)
    save_masks(tmp_path / "m", masks, summarise(planted, masks, Ratio(2.0)))
    summary = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert summary["format"] == "monet-selection/1"
    (tmp_path / "m" / "summary.json").unlink()
    with pytest.raises(CheckpointError, match=r"summary\.json"):
        load_masks(tmp_path / "m")
