"""`compile: true`: the losses of an eager run, checkpoints that an eager run continues from, errors in one line."""

import pytest
from torch._inductor.exc import InvalidCxxCompiler

from monet.training.module import MonetLightningModule
from tests.training.runs import losses


@pytest.mark.nightly  # tests/model/test_compile.py compiles a training step
def test_a_compiled_run_has_the_losses_of_an_eager_one_and_continues_as_one(train, settings):
    settings["model"]["shape"] |= {"attention_dropout": 0.0, "num_hidden_layers": 2}
    settings["compile"] = True
    train("compiled", "--trainer.max_steps=4", "--model.schedule.total_steps=12")
    run = train("compiled", "--trainer.max_steps=6", "--model.schedule.total_steps=12", "--compile=false")
    settings["compile"] = False
    eager = train("eager", "--trainer.max_steps=6", "--model.schedule.total_steps=12")
    assert run.code == eager.code == 0
    assert [loss for _, loss in losses(run.run_dir)] == pytest.approx(
        [loss for _, loss in losses(eager.run_dir)], rel=1e-4
    )
    names = [set(path.name for path in (r.checkpoints / "step-00000004").iterdir()) for r in (run, eager)]
    assert names[0] == names[1]


def test_the_model_is_compiled_only_on_request(train, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda self, *args, **options: compiled.append(type(self).__name__))
    assert train("eager", "--trainer.max_steps=3").code == 0
    assert compiled == []
    assert train("compiled", "--trainer.max_steps=3", "--compile=true").code == 0
    assert compiled == ["MonetForCausalLM"]


@pytest.mark.parametrize("strategy", ["zero3", "zero3_offload"])
def test_partitioned_weights_are_not_compiled(train, capsys, strategy):
    pytest.importorskip("deepspeed")
    assert train("run", "--compile=true", f"--trainer.strategy={strategy}").code == 2
    assert "compile = true: ZeRO 3" in capsys.readouterr().err


def test_a_failed_compilation_is_told_in_one_line(train, monkeypatch, capsys):
    def fail(self, *arguments):
        raise InvalidCxxCompiler()

    monkeypatch.setattr("torch.nn.Module.compile", lambda self, *args, **options: None)
    monkeypatch.setattr(MonetLightningModule, "training_step", fail)
    assert train("run", "--compile=true").code == 2
    error = capsys.readouterr().err
    assert "compile = true: torch.compile failed here" in error and error.count("\n") == 1
