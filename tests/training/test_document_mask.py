"""Runs whose attention stays inside documents: their losses differ, and they continue bit for bit."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM

from monet.convert.export import export
from monet.training.checkpoints.saving import StepCheckpoint
from monet.training.weights import trained_with_document_masks
from tests.training.runs import SHAPE, losses, read_log
from tests.training.test_twin import TWIN

MANY_TOKENS = ["--data.seq_len", "64", "--data.batch_size", "8"]  # the text's documents have hundreds of tokens each


class Crash(Exception):
    pass


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_crashed_run_with_document_masks_continues_bit_for_bit(train, monkeypatch, attention):
    words = ["--data.document_mask", "true", "--model.attention", attention, *MANY_TOKENS]
    whole = train("whole", *words)
    save_or_not = StepCheckpoint.on_train_batch_end

    def fail(self, trainer, *args):
        if trainer.global_step == 6:
            raise Crash
        save_or_not(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(StepCheckpoint, "on_train_batch_end", fail)
        with pytest.raises(Crash):
            train("crashed", *words)
    run = train("crashed", *words)
    assert run.code == 0
    assert losses(run.run_dir) == losses(whole.run_dir)
    assert read_log(run.run_dir, "validation.jsonl") == read_log(whole.run_dir, "validation.jsonl")
    for name in ("model.safetensors", "trainer.safetensors"):
        last = "step-00000012"
        assert (run.checkpoints / last / name).read_bytes() == (whole.checkpoints / last / name).read_bytes()


@pytest.mark.parametrize("architecture", ["monet", "llama"])
def test_an_exported_model_says_how_it_was_trained(train, settings, tmp_path, architecture):
    settings["model"]["shape"] = dict(SHAPE if architecture == "monet" else TWIN)
    for masked in (True, False):
        out = tmp_path / f"out-{masked}"
        run = train(f"run-{masked}", "--trainer.max_steps", "4", "--data.document_mask", str(masked).lower())
        assert run.code == 0
        checkpoint = next(run.checkpoints.glob("step-*"))
        assert json.loads((checkpoint / "config.json").read_text()).get("document_mask", False) is masked
        assert trained_with_document_masks(checkpoint) is masked
        export(out, run=run.run_dir)
        assert json.loads((out / "config.json").read_text()).get("document_mask", False) is masked
        assert getattr(AutoModelForCausalLM.from_pretrained(out).config, "document_mask", False) is masked
        assert ("document masks" in (out / "README.md").read_text()) is masked


def test_the_mask_changes_the_loss_and_cannot_change_within_a_run(train, capsys):
    words = ["--trainer.max_steps", "4", *MANY_TOKENS]
    masked = train("masked", "--data.document_mask", "true", *words)
    plain = train("plain", *words)
    assert losses(masked.run_dir) != losses(plain.run_dir)
    assert train("masked", *MANY_TOKENS).code == 2
    assert "document_mask False differs from the run's True" in capsys.readouterr().err
