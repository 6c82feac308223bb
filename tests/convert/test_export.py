"""Export and generation: the exported folder equals the checkpoint, bit for bit, also in another process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import monet
from monet import files
from monet.convert.export import export
from monet.convert.remote_code import auto_map, modelling_source
from monet.errors import CheckpointError
from monet.serve.generate import generate
from monet.training.cli import main
from monet.training.run import TokenizerCopy
from monet.training.weights import load_checkpoint_model
from tests.training.runs import SHAPE

ANOTHER_PROCESS = """
import sys, torch, monet
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[3]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = torch.arange(60).view(2, 30)
with torch.no_grad():
    text = tokenizer("the cat", return_tensors="pt")["input_ids"]
    save_file({"logits": model(ids).logits, "text": text}, sys.argv[2])
"""


@pytest.fixture(scope="module", params=[("vertical", True), ("horizontal", False)], ids=lambda p: p[0])
def run(request, tmp_path_factory, data_dir):
    decompose, tied = request.param
    root = tmp_path_factory.mktemp("export")
    content = {
        "cpu_threads": 1, "loggers": [], "checkpoint_every": 2, "seed_everything": 7,
        "model": {"shape": {**SHAPE, "moe_decompose": decompose, "tie_word_embeddings": tied}},
        "data": {"data_dir": str(data_dir), "seq_len": 16, "batch_size": 2, "max_val_windows": 2},
        "trainer": {"max_steps": 4, "val_check_interval": 4, "accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        assert main(["fit", "--config", str(root / "config.yaml"), "--run_dir", str(root / "run")]) == 0
    export(root / "out", run=root / "run")
    return root


def test_logits_in_another_process_are_the_checkpoints_bit_for_bit(run, tmp_path):
    words = [str(run / "out"), str(tmp_path / "logits.safetensors"), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, *words], check=True, timeout=300)
    found = load_file(tmp_path / "logits.safetensors")
    model = load_checkpoint_model(run / "run" / "checkpoints" / "step-00000004")
    with torch.no_grad():
        assert torch.equal(found["logits"], model(torch.arange(60).view(2, 30)).logits)
    assert found["text"].numel() > 0


def test_weights_are_the_checkpoints_under_the_same_names(run):
    stored = load_file(run / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    exported = load_file(run / "out" / "model.safetensors")
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())


def test_a_checkpoint_folder_loads_as_a_model_itself(run):
    folder = run / "run" / "checkpoints" / "step-00000002"
    found = monet.MonetForCausalLM.from_pretrained(folder).state_dict()
    expected = load_checkpoint_model(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_folder_tells_where_it_comes_from(run):
    provenance = json.loads((run / "out" / "provenance.json").read_text())
    assert provenance["checkpoint"] == "run/checkpoints/step-00000004"
    assert provenance["step"] == 4 and provenance["tokens_seen"] == 4 * 2 * 16
    assert len(provenance["data_fingerprint"]) == 64
    assert (provenance["seed"], provenance["data_seed"]) == (7, 0)
    card = (run / "out" / "README.md").read_text()
    assert provenance["checkpoint_manifest_sha256"] in card
    assert "| animals |" in card and "8² = 64 per layer" in card
    assert str(run) not in card
    generation = json.loads((run / "out" / "generation_config.json").read_text())
    tokenizer_config = json.loads((run / "out" / "config.json").read_text())
    assert generation["eos_token_id"] == tokenizer_config["eos_token_id"] is not None


def test_one_checkpoint_can_be_chosen_and_cast(run, tmp_path):
    export(tmp_path / "half", checkpoint=run / "run" / "checkpoints" / "step-00000002", dtype="bfloat16")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    assert weights["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert weights["model.layers.0.router.norm1.running_var"].dtype == torch.float32
    assert json.loads((tmp_path / "half" / "provenance.json").read_text())["step"] == 2
    assert monet.MonetForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_remote_code_comes_with_the_model_on_demand(run, tmp_path):
    """tests/convert/test_remote_code.py tests the results of the file."""
    assert not (run / "out" / "modeling_monet.py").exists()
    assert "auto_map" not in json.loads((run / "out" / "config.json").read_text())
    assert "trust_remote_code" not in (run / "out" / "README.md").read_text()
    out = tmp_path / "out"
    export(out, run=run / "run", remote_code=True)
    assert (out / "modeling_monet.py").read_text() == modelling_source()
    plain = {**json.loads((run / "out" / "config.json").read_text()), "auto_map": auto_map()}
    assert json.loads((out / "config.json").read_text()) == plain
    assert 'from_pretrained("PATH", trust_remote_code=True)' in (out / "README.md").read_text()
    assert load_file(out / "model.safetensors").keys() == load_file(run / "out" / "model.safetensors").keys()
    assert type(AutoModelForCausalLM.from_pretrained(out)) is monet.MonetForCausalLM
    generate(out, "the cat", max_new_tokens=3)


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no card")

    monkeypatch.setattr("monet.convert.export.model_card", fail)
    with pytest.raises(RuntimeError, match="no card"):
        export(tmp_path / "out", run=run / "run")
    assert list(tmp_path.iterdir()) == []


def printed(capsys, run, **options):
    generate(run / "out", "the cat", max_new_tokens=12, **options)
    return capsys.readouterr().out


def test_generation_repeats_with_the_seed_and_greedy_without(run, capsys):
    first = printed(capsys, run, seed=3)
    assert first.startswith("the cat") and len(first) > len("the cat\n")
    assert printed(capsys, run, seed=3) == first
    assert len({printed(capsys, run, seed=seed, temperature=2.0, top_p=1.0) for seed in range(4)}) > 1
    assert printed(capsys, run, temperature=0.0, seed=1) == printed(capsys, run, temperature=0.0, seed=2)


def test_generation_under_a_mask(run, capsys, tmp_path):
    model = monet.MonetForCausalLM.from_pretrained(run / "out")
    monet.ExpertMask.keep_all(model.config).save(tmp_path / "all.safetensors", model=model)
    (~monet.ExpertMask.keep_all(model.config)).save(tmp_path / "none.safetensors", model=model)
    plain = printed(capsys, run, temperature=0.0)
    assert printed(capsys, run, temperature=0.0, mask=tmp_path / "all.safetensors") == plain
    assert printed(capsys, run, temperature=0.0, mask=tmp_path / "none.safetensors")


def test_a_continuation_longer_than_the_model_takes_is_refused(run):
    with pytest.raises(monet.errors.ConfigError, match="the model takes 64"):
        generate(run / "out", "the cat", max_new_tokens=100)


def test_a_link_in_the_tokenizer_s_folder_is_not_followed(run, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(run / "run" / "tokenizer", tokenizer)
    (tokenizer / "vocab.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"vocab\.txt is a link to .*id_rsa, outside its folder"):
        export(tmp_path / "out", run=run / "run", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_links_of_the_hugging_face_cache_are_followed(run, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(run / "run" / "tokenizer", snapshot)
    blob = tmp_path / "models--a--b" / "blobs" / "4567"
    blob.parent.mkdir()
    (snapshot / "tokenizer.json").rename(blob)
    (snapshot / "tokenizer.json").symlink_to("../../blobs/4567")
    export(tmp_path / "out", run=run / "run", tokenizer=snapshot)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == blob.read_bytes()


def test_a_run_copies_no_link_of_its_data(tmp_path):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "vocab.txt").symlink_to(tmp_path / "id_rsa")
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    copy = TokenizerCopy(cast(Any, SimpleNamespace(tokenizer=tmp_path / "run" / "tokenizer")))
    trainer = SimpleNamespace(datamodule=SimpleNamespace(tokenizer_dir=source), is_global_zero=True)
    with pytest.raises(CheckpointError, match="outside its folder"):
        copy.on_train_start(cast(Any, trainer), cast(Any, None))
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_an_export_hashes_what_it_reads(train, tmp_path, monkeypatch):
    run = train("run", "--trainer.max_steps=4")
    hashed: list[str] = []
    hash_file = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: hashed.append(Path(path).name) or hash_file(path))
    export(tmp_path / "model", run=run.run_dir)
    assert "model.safetensors" in hashed and "optimizer.safetensors" not in hashed
