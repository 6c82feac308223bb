"""`auto_map`, which names the modelling file of a released model: it is always read, and written only if correct."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from monet import MonetConfig, MonetForCausalLM
from monet.eval.core.loading import weights_digest
from tests.compat.released import AUTO_MAP, change_config
from tests.model.tiny import states_equal, tiny_config, tiny_model, tokens


@pytest.fixture
def released(tmp_path) -> Path:
    folder = tmp_path / "released"
    tiny_model().save_pretrained(folder)
    change_config(folder, auto_map=AUTO_MAP, transformers_version="4.47.1")
    return folder


def keys_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_a_file_without_it_gives_an_empty_one_that_is_not_written(tmp_path):
    config = tiny_config()
    assert config.auto_map == {} and "auto_map" not in config.to_dict() and "auto_map" not in repr(config)
    config.auto_map["AutoModel"] = "changed.Here"
    assert tiny_config().auto_map == {}  # configurations do not share the dictionary
    tiny_model().save_pretrained(tmp_path)
    assert "auto_map" not in keys_of(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).auto_map == {}
    assert MonetConfig.from_dict(keys_of(tmp_path) | {"auto_map": None}).auto_map == {}


def test_the_content_of_a_released_file_is_kept(released):
    for config in (AutoConfig.from_pretrained(released), AutoConfig.from_pretrained(released, trust_remote_code=True)):
        assert type(config) is MonetConfig and config.auto_map == AUTO_MAP
        content = keys_of(released)
        assert {**config.to_dict(), "transformers_version": "4.47.1"} == content
        for again in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), MonetConfig.from_dict(content)):
            assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModel])
def test_our_classes_run(released, trust, auto):
    model = auto.from_pretrained(released, trust_remote_code=trust)
    assert type(model).__module__ == "monet.model.modeling_monet"
    again = auto.from_config(model.config, trust_remote_code=trust)
    assert type(again) is type(model)


def test_a_saved_folder_names_no_code_that_is_not_in_it(released, tmp_path):
    model = MonetForCausalLM.from_pretrained(released)
    model.save_pretrained(tmp_path / "saved")
    model.config.save_pretrained(tmp_path / "config")
    for name in ("saved", "config"):
        assert "auto_map" not in keys_of(tmp_path / name)
    assert model.config.auto_map == AUTO_MAP  # saving does not change the model's own configuration
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert states_equal(again, model)


def test_a_saved_folder_names_the_code_that_is_in_it(released, tmp_path):
    model = MonetForCausalLM.from_pretrained(released)
    model.config.auto_map["AutoTokenizer"] = ["tokenization_monet.MonetTokenizer", None]
    model.config.auto_map["AutoModelForSequenceClassification"] = "someone/else--modeling_monet.MonetModel"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "modeling_monet.py").write_text("# the modelling file\n")
    model.save_pretrained(tmp_path / "saved")
    assert keys_of(tmp_path / "saved")["auto_map"] == AUTO_MAP
    (tmp_path / "saved" / "tokenization_monet.py").write_text("# the tokenizer's file\n")
    model.save_pretrained(tmp_path / "saved")
    assert keys_of(tmp_path / "saved")["auto_map"].keys() == {*AUTO_MAP, "AutoTokenizer"}


def test_classes_registered_for_an_auto_class_are_saved_with_their_code(tmp_path):
    """transformers copies the file of such a class into the folder and adds it to auto_map."""

    class Own(MonetConfig):
        pass

    Own._auto_class = "AutoConfig"
    config = Own.from_dict(tiny_config().to_dict())
    config.save_pretrained(tmp_path)
    module = Path(__file__).stem
    assert keys_of(tmp_path)["auto_map"] == {"AutoConfig": f"{module}.Own"} and (tmp_path / f"{module}.py").is_file()
    assert tiny_config().auto_map == {}


def test_a_models_digest_does_not_depend_on_it(released):
    model = MonetForCausalLM.from_pretrained(released)
    digest = weights_digest(model)
    model.config.auto_map = {}
    assert weights_digest(model) == digest


def test_logits_are_those_of_the_plain_folder(released):
    assert torch.equal(MonetForCausalLM.from_pretrained(released)(tokens()).logits, tiny_model()(tokens()).logits)
