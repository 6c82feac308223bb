"""Lightning's trainer options: a time limit for each start, and options that a run refuses."""

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser
from safetensors.torch import load_file

from monet.errors import ConfigError
from monet.training.trainer_options import refuse_callbacks
from tests.training.runs import losses, read_log


def test_a_time_limit_counts_for_each_start_and_the_same_command_continues(train, capsys):
    limit = ("--trainer.max_steps=3", "--trainer.max_time=00:00:00:00")
    for step in (1, 2):
        run = train("run", *limit)
        assert run.code == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"stopped by trainer.max_time after step {step} of 3; run the same command to continue"
        assert (run.checkpoints / f"step-{step:08d}").is_dir()
    assert train("run", *limit).code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("finished 3 steps")
    whole = train("whole", "--trainer.max_steps=3")
    assert losses(run.run_dir) == losses(whole.run_dir)
    assert read_log(run.run_dir, "starts.jsonl")[-1]["step"] == 2


def test_a_run_in_pieces_has_the_validations_of_a_whole_one(train, settings):
    settings["trainer"] |= {"max_steps": 5, "val_check_interval": 4}  # batches: every second step
    run = train()
    whole = read_log(run.run_dir, "validation.jsonl")
    for _ in range(5):
        pieces = train("pieces", "--trainer.max_time=00:00:00:00")
    assert [entry["step"] for entry in whole] == [2, 4]
    assert read_log(pieces.run_dir, "validation.jsonl") == whole


def test_an_early_stop_is_not_called_finished(train, settings, capsys):
    settings["trainer"]["callbacks"] = [
        {
            "class_path": "lightning.pytorch.callbacks.EarlyStopping",
            "init_args": {"monitor": "validation/loss", "stopping_threshold": 100.0},
        }
    ]
    assert train().code == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "stopped by a callback after step 8 of 12; run the same command to continue"


def test_a_time_limit_of_another_form_is_refused(train, capsys):
    assert train("run", "--trainer.max_time=1h").code == 2
    assert "trainer.max_time = 1h" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "remedy"), [
    ("limit_val_batches=1", "data.max_val_windows"),
    ("limit_val_batches=0.5", "data.max_val_windows"),
    ("fast_dev_run=true", "trainer.max_steps"),
    ("overfit_batches=2", "endless stream"),
    ("limit_train_batches=3", "endless stream"),
    ("max_epochs=1", "end the run with trainer.max_steps"),
    ("min_epochs=1", "end the run with trainer.max_steps"),
    ("reload_dataloaders_every_n_epochs=1", "endless stream"),
    ("check_val_every_n_epoch=1", "trainer.val_check_interval"),
])  # fmt: skip
def test_options_that_need_epochs_or_validate_some_domains_only_are_refused(train, capsys, word, remedy):
    assert train("run", f"--trainer.{word}").code == 2
    error = capsys.readouterr().err
    assert f"trainer.{word.partition('=')[0]} = " in error and remedy in error


def test_one_batch_is_not_read_as_all_batches_where_typing_puts_float_first(train, capsys, monkeypatch):
    add = LightningArgumentParser.add_lightning_class_args

    def add_with_float_first(parser, kind, key, **options):
        add(parser, kind, key, **options)
        for action in parser._actions:
            if action.dest == "trainer.limit_val_batches":
                action._typehint = float | int | None

    monkeypatch.setattr(LightningArgumentParser, "add_lightning_class_args", add_with_float_first)
    assert train("run", "--trainer.limit_val_batches=1").code == 2
    assert "trainer.limit_val_batches = 1: " in capsys.readouterr().err


@pytest.mark.parametrize("word", ["limit_val_batches=1.0", "limit_val_batches=0", "limit_train_batches=1.0"])
def test_values_that_change_nothing_or_switch_validation_off_are_taken(train, word):
    run = train("run", "--trainer.max_steps=8", f"--trainer.{word}")
    assert run.code == 0
    assert (run.run_dir / "validation.jsonl").is_file() is (not word.endswith("=0"))


def test_a_callback_that_writes_checkpoints_is_refused(train, settings, capsys):
    settings["trainer"]["callbacks"] = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]
    assert train().code == 2
    error = capsys.readouterr().err
    assert "ModelCheckpoint" in error and "checkpoint_every" in error


def test_a_timer_of_lightning_is_refused():
    with pytest.raises(ConfigError, match=r"Timer.*trainer\.max_time"):
        refuse_callbacks([Timer("00:01:00:00")])


def test_bfloat16_weights_without_a_float32_copy_are_told(train):
    with pytest.warns(UserWarning, match="bf16-true keeps weights and moments in bfloat16 without a float32 copy"):
        run = train("run", "--trainer.max_steps=3", "--trainer.precision=bf16-true")
    assert run.code == 0
    moments = load_file(run.checkpoints / "step-00000003" / "optimizer.safetensors")
    assert {t.dtype for name, t in moments.items() if "exp_avg" in name} == {torch.bfloat16}
