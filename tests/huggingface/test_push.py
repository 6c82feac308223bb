"""Uploads to the hub contain the stored mask with the weights, and no mask from an earlier upload."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers.modeling_utils
import transformers.utils.hub
from huggingface_hub import ModelCard

import monet.model.pretrained
from monet import ExpertMask
from tests.model.tiny import tiny_model


class Hub:
    """Replaces huggingface_hub's API and records what is sent."""

    def __init__(self, holds_mask: bool) -> None:
        self.holds_mask = holds_mask
        self.uploaded: list[str] = []
        self.deleted: list[str] = []

    def __call__(self, *args, **kwargs):
        return self

    def create_repo(self, *args, **kwargs):
        return SimpleNamespace(repo_id="me/model")

    def create_commit(self, repo_id=None, operations=(), **kwargs):
        self.uploaded += [operation.path_in_repo for operation in operations]

    def file_exists(self, repo_id, name, **kwargs):
        return self.holds_mask

    def delete_file(self, name, repo_id, **kwargs):
        self.deleted.append(name)

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@pytest.fixture(params=[False, True], ids=["new", "holds a mask"])
def hub(request, monkeypatch) -> Hub:
    hub = Hub(request.param)
    for module in (transformers.utils.hub, transformers.modeling_utils):
        for name, new in {
            "hf_api": hub,
            "create_repo": hub.create_repo,
            "create_commit": hub.create_commit,
            "create_and_tag_model_card": lambda *args, **kwargs: ModelCard("# a model"),
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, new)
    monkeypatch.setattr(monet.model.pretrained, "HfApi", hub)
    return hub


HYBRID = {"dense_layers": [0, 2], "intermediate_size": 40}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", ["save_pretrained", "push_to_hub"])
@pytest.mark.parametrize("shape", [{}, HYBRID], ids=["monet", "hybrid"])
def test_a_mask_travels_with_its_model(hub, tmp_path, way, masked, shape):
    model = tiny_model(**shape)
    if masked:
        model.set_expert_mask(ExpertMask.random(model.config, 30, seed=0))
    if way == "push_to_hub":
        model.push_to_hub("me/model")
    else:
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/model")
    assert "model.safetensors" in hub.uploaded
    assert ("expert_mask.safetensors" in hub.uploaded) == masked
    assert hub.deleted == (["expert_mask.safetensors"] if hub.holds_mask and not masked else [])


def test_an_upload_that_is_done_does_not_fail_afterwards(hub, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no connection")

    monkeypatch.setattr(hub, "file_exists", broken, raising=False)
    with pytest.warns(UserWarning, match=r"delete expert_mask.safetensors there"):
        tiny_model().push_to_hub("me/model")
