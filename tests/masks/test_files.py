"""Mask files: every bit is restored, and damaged masks or masks of another model are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from monet import ExpertMask
from monet.errors import CheckpointError
from tests.model.tiny import tiny_model


def random_mask(R: int, E: int, soft: bool = False, **options) -> ExpertMask:
    keep_REE = torch.rand(R, E, E, generator=torch.Generator().manual_seed(E))
    return ExpertMask(keep_REE if soft else keep_REE > 0.4, **options)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("R", "E"), [(1, 1), (2, 3), (1, 5), (3, 7), (2, 8), (1, 16)])
def test_round_trip(tmp_path, R, E, soft):
    """Includes sizes whose number of bits is not a multiple of eight."""
    path = tmp_path / "deep" / "mask.safetensors"
    mask = random_mask(R, E, soft, provenance={"label": "français", "ratio": 2.0, "of": [1, None]}, fingerprint="f")
    mask.save(path)
    again = ExpertMask.load(path)
    assert torch.equal(again.keep_REE, mask.keep_REE) and again.keep_REE.dtype == mask.keep_REE.dtype
    assert again == mask and again.is_hard == mask.is_hard
    assert again.provenance == mask.provenance and again.fingerprint == "f"
    assert [entry.name for entry in path.parent.iterdir()] == ["mask.safetensors"], "nothing temporary stays"


def test_a_hard_mask_takes_one_bit_an_expert(tmp_path):
    random_mask(6, 512).save(tmp_path / "mask.safetensors")
    assert load_file(tmp_path / "mask.safetensors")["keep"].nbytes == 6 * 512 * 512 // 8


def test_the_file_tells_what_it_is(tmp_path):
    random_mask(2, 3, provenance={"made_by": "hand"}).save(tmp_path / "mask.safetensors")
    with safe_open(tmp_path / "mask.safetensors", "pt") as file:
        notes = file.metadata()
    assert notes["format"] == "monet-expert-mask-1" and json.loads(notes["shape"]) == [2, 3, 3]
    assert json.loads(notes["provenance"]) == {"made_by": "hand"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "mask.safetensors"
    old = random_mask(2, 3)
    old.save(path)

    def failing(content, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("monet.masks.expert_mask.save_file", failing)
    with pytest.raises(OSError, match="disk full"):
        random_mask(2, 3, soft=True).save(path)
    assert ExpertMask.load(path) == old
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mask_is_tied_to_the_model_it_was_saved_for(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1)
    path = tmp_path / "mask.safetensors"
    random_mask(2, 6).save(path, model=model)
    mask = ExpertMask.load(path, model=model)
    assert mask.fingerprint == model.fingerprint()
    assert ExpertMask.load(path).fingerprint == model.fingerprint(), "loading without a model checks nothing"
    with pytest.raises(CheckpointError, match="made for another model") as caught:
        ExpertMask.load(path, model=other)
    assert model.fingerprint() in str(caught.value) and other.fingerprint() in str(caught.value)
    with pytest.raises(CheckpointError, match="made for another model"):
        mask.save(tmp_path / "else.safetensors", model=other)
    with pytest.raises(CheckpointError, match=r"shape \(2, 5, 5\) does not fit the model, which needs \(2, 6, 6\)"):
        random_mask(2, 5).save(tmp_path / "else.safetensors", model=model)
    assert not (tmp_path / "else.safetensors").exists()
    random_mask(2, 6).save(path)
    assert ExpertMask.load(path, model=other).fingerprint is None, "a mask without a mark fits any model of its shape"


GOOD = {"format": "monet-expert-mask-1", "shape": "[2, 3, 3]", "fingerprint": "", "provenance": "{}"}
BITS = torch.zeros(3, dtype=torch.uint8)

DAMAGED = {
    "another format": ({"keep": BITS}, GOOD | {"format": "other"}, "not an expert mask"),
    "no metadata": ({"keep": BITS}, None, "not an expert mask"),
    "too few bits": ({"keep": BITS[:2]}, GOOD, "16 bits for a mask of shape"),
    "too many bits": ({"keep": torch.zeros(4, dtype=torch.uint8)}, GOOD, "32 bits for a mask of shape"),
    "another shape": ({"keep": torch.zeros(2, 3, 4)}, GOOD, "damaged mask file"),
    "not square": ({"keep": torch.zeros(2, 3, 4)}, GOOD | {"shape": "[2, 3, 4]"}, "expected .routing groups, E, E"),
    "shape is no list": ({"keep": BITS}, GOOD | {"shape": "7"}, "damaged mask file"),
    "shape is no JSON": ({"keep": BITS}, GOOD | {"shape": "two"}, "damaged mask file"),
    "provenance is no JSON": ({"keep": BITS}, GOOD | {"provenance": "{"}, "damaged mask file"),
    "no shape": ({"keep": BITS}, {k: v for k, v in GOOD.items() if k != "shape"}, "damaged mask file"),
    "no tensor": ({"kept": BITS}, GOOD, "damaged mask file"),
    "NaN": (
        {"keep": torch.full((2, 3, 3), float("nan"))},
        GOOD,
        "keep-weight nan: must be from 0",
    ),
    "far above one": ({"keep": torch.full((2, 3, 3), 1e6)}, GOOD, "keep-weight 1000000.0"),
    "negative": ({"keep": torch.full((2, 3, 3), -0.5)}, GOOD, "keep-weight -0.5"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(tmp_path, case):
    tensors, notes, message = DAMAGED[case]
    path = tmp_path / "mask.safetensors"
    save_file(tensors, path, notes)
    with pytest.raises(CheckpointError, match=message) as caught:
        ExpertMask.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x08\x00\x00\x00\x00\x00\x00\x00{}", None], ids=repr)
def test_no_mask_files(tmp_path, content):
    path = tmp_path / "mask.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        ExpertMask.load(path)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        ExpertMask.load(tmp_path)


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_truncated_files(tmp_path, cut):
    path = tmp_path / "mask.safetensors"
    random_mask(2, 8).save(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="damaged"):
        ExpertMask.load(path)
