"""Stage 2: its file of settings, the export, and continuation after a kill."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from monet import MonetForCausalLM
from monet.cli import main
from monet.convert.dense.report import Report
from monet.training.configs import read_training_config
from tests.convert.dense.test_resume import assert_same, in_process, weights

DISTIL = {"distil_tokens": 384, "distil_batch_size": 2, "tokens": 128, "seq_len": 32}


def test_both_stages_give_a_model_and_a_report(words, tmp_path):
    assert main(words(**DISTIL)) == 0
    run = tmp_path / "run"
    MonetForCausalLM.from_pretrained(run)
    report = Report.load(run)
    assert report.distil_tokens == 384
    assert [part.tokens for part in report.parts if part.name == "stage 2"] == [384]
    assert all(domain.loss != domain.loss_local and domain.kl != domain.kl_local for domain in report.domains)
    local, final = load_file(run / "layers" / "model" / "model.safetensors"), weights(run)
    changed = {name for name in final if not torch.equal(local[name], final[name])}
    assert any(".moe." in name for name in changed) and any(".router." in name for name in changed)
    # the dense part is frozen
    assert all(".moe." in name or ".router." in name for name in changed)
    assert json.loads((run / "provenance.json").read_text())["step"] == 6


def test_the_settings_are_a_file_for_train_py(words, tmp_path, capsys):
    """`distil_here: false` writes the file and waits for another program."""
    assert main(words(**DISTIL, distil_here="false", layers="1,3", document_mask="true")) == 0
    assert "stage 2 waits: run train.py fit" in capsys.readouterr().out
    run = tmp_path / "run"
    assert not (run / "config.json").exists()
    settings = read_training_config([run / "distil.yaml"])
    assert settings.model.shape.dense_layers == [0, 2]
    assert settings.model.init_from == str(run / "layers" / "model")
    assert settings.trainer.max_steps == 6 and settings.data.document_mask
    plain = yaml.safe_load((run / "distil.yaml").read_text())
    assert plain["model"]["freeze_dense"] and plain["model"]["teacher"]["weight"] == 1.0


def test_the_command_finishes_what_train_py_trained(words, tmp_path, monkeypatch):
    from monet.training.cli import main as train

    command = words(**DISTIL, distil_here="false")
    assert main(command) == 0
    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert train(["fit", "--config", str(run / "distil.yaml"), "--run_dir", str(run / "distil")]) == 0
    assert main(command) == 0
    assert Report.load(run).distil_tokens == 384


@pytest.mark.nightly  # test_resume.py kills stage 1, tests/training/test_kill.py a training run
def test_a_run_that_was_killed_in_stage_2_continues_with_the_same_bits(words, tmp_path):
    assert main(words(**DISTIL, out=tmp_path / "whole")) == 0
    command = words(**DISTIL)
    assert in_process(4, "SIGKILL", command, stage=2) == -9
    assert (tmp_path / "run" / "distil" / "checkpoints").is_dir()
    assert main(command) == 0
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
