"""Inputs that an export skips, omits or refuses."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from monet.convert.export import export
from monet.errors import CheckpointError, ConfigError
from monet.files import write_manifest
from monet.training.cli import main
from tests.training.runs import SHAPE


@pytest.fixture(scope="module")
def original(tmp_path_factory, data_dir):
    root = tmp_path_factory.mktemp("export_inputs")
    content = {
        "cpu_threads": 1, "loggers": [], "checkpoint_every": 2, "model": {"shape": SHAPE},
        "data": {"data_dir": str(data_dir), "seq_len": 16, "batch_size": 2, "max_val_windows": 2},
        "trainer": {"max_steps": 4, "val_check_interval": 4, "accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        assert main(["fit", "--config", str(root / "config.yaml"), "--run_dir", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_passed_over(run, tmp_path):
    newest = run / "checkpoints" / "step-00000004"
    flip_a_byte(newest / "model.safetensors")
    with pytest.warns(UserWarning, match="step-00000004 is not valid and is skipped"):
        export(tmp_path / "out", run=run)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["step"] == 2
    with pytest.raises(CheckpointError, match="SHA-256"):
        export(tmp_path / "named", checkpoint=newest)


def test_a_torn_line_of_the_validation_log_is_passed_over(run, tmp_path):
    with open(run / "validation.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "los')
    export(tmp_path / "out", run=run)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["validation"]["step"] == 4


def test_a_tokenizer_folder_gives_its_tokenizer_only(run, tmp_path):
    folder = shutil.copytree(run / "tokenizer", tmp_path / "foreign")
    for name in ("config.json", "generation_config.json", "expert_mask.safetensors"):
        (folder / name).write_text('{"model_type": "foreign"}')
    export(tmp_path / "out", run=run, tokenizer=folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["moe_topk"] == SHAPE["moe_topk"]
    assert "foreign" not in (tmp_path / "out" / "generation_config.json").read_text()
    assert not (tmp_path / "out" / "expert_mask.safetensors").exists()
    copies = {path.name for path in (run / "tokenizer").iterdir()}
    assert copies <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(run, tmp_path):
    from tokenizers import Tokenizer

    path = run / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"<{number}>" for number in range(30)])
    tokenizer.save(str(path))
    with pytest.raises(ConfigError, match="has 310 ids, but the model has 300"):
        export(tmp_path / "out", run=run)


def test_weights_beyond_float16_are_refused(run, tmp_path):
    folder = run / "checkpoints" / "step-00000002"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, folder / "model.safetensors")
    (folder / "MANIFEST.json").unlink()
    write_manifest(folder)
    with pytest.raises(ConfigError, match=r"float16 cannot represent the weights of model\.norm\.weight"):
        export(tmp_path / "out", checkpoint=folder, dtype="float16")
    export(tmp_path / "out", checkpoint=folder, dtype="bfloat16")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
