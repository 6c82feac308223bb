"""A run's own record: it repeats from its config.yaml, saves at every end, and refuses settings that break repeats."""

import lightning as L
import pytest
from safetensors.torch import load_file

from monet.data.loading.datamodule import MonetDataModule
from monet.training.checkpoints.checkpoint import list_checkpoints, step_of
from monet.training.cli import main
from monet.training.metrics import MetricsLog
from monet.training.module import MonetLightningModule
from monet.training.settings import ModelShape
from tests.training.runs import SHAPE, losses


def test_a_run_is_repeated_from_its_own_configuration(train, tmp_path):
    first = train("first", "--trainer.max_steps=4")
    words = ["--config", str(first.run_dir / "config.yaml"), "--run_dir", str(tmp_path / "second")]
    assert main(["fit", *words]) == 0
    assert losses(tmp_path / "second") == losses(first.run_dir)


def test_a_run_that_something_else_ends_keeps_its_last_step_and_continues(train, monkeypatch):
    def stop(self, trainer, *args):
        written(self, trainer, *args)
        trainer.should_stop = trainer.global_step == 6

    written = MetricsLog.on_train_batch_end
    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "on_train_batch_end", stop)
        run = train()
    assert run.code == 0
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4, 6]
    assert train().code == 0
    assert losses(run.run_dir) == losses(whole.run_dir)
    last = "step-00000012/model.safetensors"
    assert (run.checkpoints / last).read_bytes() == (whole.checkpoints / last).read_bytes()


def test_a_run_ended_inside_a_step_saves_no_half_step(train, monkeypatch):
    def stop(self, trainer, module, outputs, batch, batch_idx):
        written(self, trainer, module, outputs, batch, batch_idx)
        trainer.should_stop = batch_idx == 10

    written = MetricsLog.on_train_batch_end
    monkeypatch.setattr(MetricsLog, "on_train_batch_end", stop)
    with pytest.warns(UserWarning, match="stopped inside a step; its newest checkpoint is that of step 4"):
        run = train()
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4]


def test_another_accumulation_is_refused_when_a_run_continues(train, capsys):
    train("run", "--trainer.max_steps=4")
    assert train("run", "--trainer.accumulate_grad_batches=4").code == 2
    message = "batch_size x processes x trainer.accumulate_grad_batches = 2 x 1 x 4 differs from the run's 2 x 1 x 2"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("batch_size", "accumulated"), [(4, 1), (1, 4)])
def test_a_step_divided_otherwise_keeps_its_windows(train, settings, monkeypatch, batch_size, accumulated):
    settings["model"]["shape"]["attention_dropout"] = 0.0
    windows: dict[int, list[int]] = {}

    def note(self, batch, batch_idx):
        windows.setdefault(self.trainer.global_step, []).extend(batch["index"].tolist())
        return step(self, batch, batch_idx)

    step = MonetLightningModule.training_step
    monkeypatch.setattr(MonetLightningModule, "training_step", note)
    whole = train("whole")
    expected = {number: windows.pop(number) for number in range(12)}
    train("run", "--trainer.max_steps=4")
    windows.clear()
    words = [f"--data.batch_size={batch_size}", f"--trainer.accumulate_grad_batches={accumulated}"]
    run = train("run", *words, "--model.router_statistics_every=step")
    assert run.code == 0
    assert windows == {number: expected[number] for number in range(4, 12)}
    # thresholds come from other batches
    for (_, ours), (_, theirs) in zip(losses(run.run_dir), losses(whole.run_dir), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2)


def test_statistics_move_once_a_step_where_that_is_chosen(train):
    tracked = {}
    for name, words in (("each", []), ("once", ["--model.router_statistics_every=step"])):
        run = train(name, "--trainer.max_steps=4", *words)
        weights = load_file(run.checkpoints / "step-00000004" / "model.safetensors")
        tracked[name] = int(weights["model.layers.0.router.norm1.num_batches_tracked"])
    assert tracked == {"each": 8, "once": 4}


@pytest.mark.parametrize(("word", "message"), [
    ("--trainer.strategy=fsdp", "trainer.strategy = 'fsdp': choose from auto, ddp, zero1"),
    ("--trainer.precision=16-mixed", "trainer.precision = 16-mixed"),
    ("--trainer.precision=16", "trainer.precision = 16"),
])  # fmt: skip
def test_what_would_give_wrong_numbers_is_refused(train, capsys, word, message):
    run = train("run", word)
    assert run.code == 2
    assert message in capsys.readouterr().err
    assert not (run.run_dir / "metrics.jsonl").exists()


def test_a_run_is_validated_unless_told_otherwise(train, settings):
    del settings["trainer"]["val_check_interval"]
    run = train("run", "--trainer.max_steps=3")
    assert "val_check_interval: 1000" in (run.run_dir / "config.yaml").read_text()


def test_a_plain_trainer_keeps_the_batches_of_one_step_only(data_dir, tmp_path):
    module = MonetLightningModule(ModelShape(**SHAPE))
    trainer = L.Trainer(
        max_steps=3, accumulate_grad_batches=2, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=MonetDataModule(str(data_dir), seq_len=16, batch_size=2))
    assert trainer.global_step == 3
    assert len(module.guard.record.batches) == 2
