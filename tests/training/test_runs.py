"""Whole runs of train.py in this process: what they write, how they continue, when they are refused."""

import json
import shutil
import signal

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from monet import MonetForCausalLM
from monet.convert.export import export
from monet.data.preparation.prepare import prepare
from monet.training.checkpoints.checkpoint import list_checkpoints, step_of
from monet.training.checkpoints.saving import StepCheckpoint
from monet.training.metrics import MetricsLog
from monet.training.module import MonetLightningModule
from tests.training.runs import losses, read_log


class Crash(Exception):
    pass


@pytest.fixture
def crash_after(monkeypatch):
    """Makes the run fail right after the given optimiser step, before a checkpoint of that step."""

    def arm(step):
        save_or_not = StepCheckpoint.on_train_batch_end

        def fail(self, trainer, *args):
            if trainer.global_step == step:
                raise Crash
            save_or_not(self, trainer, *args)

        monkeypatch.setattr(StepCheckpoint, "on_train_batch_end", fail)
        return lambda: monkeypatch.setattr(StepCheckpoint, "on_train_batch_end", save_or_not)

    return arm


def test_a_run_writes_one_line_a_step_and_checkpoints(train):
    run = train()
    assert run.code == 0
    log = read_log(run.run_dir)
    assert [entry["step"] for entry in log] == list(range(1, 13))
    assert set(log[0]) == {
        "step", "loss", "lm_loss", "uniformity_loss", "uniformity", "ambiguity", "active_per_head", "dead_share",
        "grad_norm", "learning_rate", "routers", "skipped", "tokens_per_second", "mfu", "step_seconds",
        "data_wait_share", "memory_bytes", "tokens_seen",
    }  # fmt: skip
    assert log[-1]["tokens_seen"] == 12 * 2 * 2 * 32
    assert log[0]["learning_rate"] == pytest.approx(1e-3)
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4, 8, 12]
    assert (run.run_dir / "tokenizer" / "tokenizer.json").is_file()
    assert (run.run_dir / "config.yaml").is_file()
    assert (run.run_dir / "logs" / "csv" / "from-step-00000000" / "metrics.csv").is_file()


def test_validation_is_logged_by_domain(train):
    (entry,) = read_log(train().run_dir, "validation.jsonl")
    assert entry["step"] == 8
    assert set(entry["loss_by_domain"]) == {"animals", "code"}
    assert entry["loss"] == pytest.approx(sum(entry["loss_by_domain"].values()) / 2)
    assert entry["perplexity_by_domain"]["code"] == pytest.approx(2.718281828459045 ** entry["loss_by_domain"]["code"])


@pytest.mark.parametrize("step", [3, 8, 11])
def test_a_crashed_run_continues_bit_for_bit(train, crash_after, step):
    whole = train("whole")
    disarm = crash_after(step)
    with pytest.raises(Crash):
        train("crashed")
    disarm()
    run = train("crashed")
    assert run.code == 0
    assert losses(run.run_dir) == losses(whole.run_dir)
    assert read_log(run.run_dir, "validation.jsonl") == read_log(whole.run_dir, "validation.jsonl")
    for name in ("model.safetensors", "trainer.safetensors"):
        last = "step-00000012"
        assert (run.checkpoints / last / name).read_bytes() == (whole.checkpoints / last / name).read_bytes()


def test_a_hybrid_trains_continues_and_is_exported(train, settings, crash_after, tmp_path):
    settings["model"]["shape"] |= {"dense_layers": [1], "intermediate_size": 48}
    whole = train("whole")
    disarm = crash_after(6)
    with pytest.raises(Crash):
        train("crashed")
    disarm()
    run = train("crashed")
    assert losses(run.run_dir) == losses(whole.run_dir) and len(read_log(run.run_dir)[0]["routers"]) == 1
    export(tmp_path / "hybrid", run=run.run_dir)
    model = MonetForCausalLM.from_pretrained(tmp_path / "hybrid")
    assert model.config.dense_layers == [1]
    card = (tmp_path / "hybrid" / "README.md").read_text()
    assert "authors of Monet\nreleased cannot load a hybrid" in card and "| dense layers | 1: MLPs of" in card


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_its_code_and_the_run_continues(train, monkeypatch, number, code):
    before = MetricsLog.on_train_batch_end

    def send(self, trainer, *args):
        before(self, trainer, *args)
        if trainer.global_step == 6:
            signal.raise_signal(number)

    whole = train("whole")
    handler = signal.getsignal(signal.SIGINT)  # Lightning ignores further interrupts while it ends
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "on_train_batch_end", send)
        assert train().code == code
    signal.signal(signal.SIGINT, handler)
    run = train()
    assert losses(run.run_dir) == losses(whole.run_dir)


def test_gradient_checkpointing_changes_no_bit(train):
    words = "--trainer.max_steps=4"
    plain, recomputed = train("plain", words), train("recomputed", words, "--model.gradient_checkpointing=true")
    assert losses(recomputed.run_dir) == losses(plain.run_dir)
    first, second = (load_file(run.checkpoints / "step-00000004" / "model.safetensors") for run in (plain, recomputed))
    assert first["model.layers.0.router.norm1.num_batches_tracked"].item() == 8
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_corrupt_newest_checkpoint_is_set_aside_and_the_loss_is_the_same(train, crash_after):
    whole = train("whole")
    disarm = crash_after(11)
    with pytest.raises(Crash):
        train()
    disarm()
    checkpoints = whole.run_dir.parent / "run" / "checkpoints"
    with open(checkpoints / "step-00000008" / "trainer.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.warns(UserWarning, match=r"step-00000008 is not valid.*trainer\.safetensors: 1000 bytes"):
        run = train()
    assert losses(run.run_dir) == losses(whole.run_dir)
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "step-00000004", "step-00000008", "step-00000008.invalid-0", "step-00000012"
    ]  # fmt: skip


def test_leftovers_of_a_killed_save_are_removed(train):
    run = train("run", "--trainer.max_steps=4")
    leftover = run.checkpoints / ".step-00000008.tmp-0123abcd"
    shutil.copytree(run.checkpoints / "step-00000004", leftover)
    assert train("run", "--trainer.max_steps=8").code == 0
    assert not leftover.exists()


def test_a_finished_run_is_left_alone(train, capsys):
    run = train()
    before = {path: path.stat().st_mtime_ns for path in run.run_dir.rglob("*") if path.name[0] != "."}
    capsys.readouterr()
    assert train().code == 0
    assert "is finished: its newest checkpoint is at step 12 of 12; nothing to do" in capsys.readouterr().out
    assert train("run", "--trainer.max_steps=6").code == 0
    after = {path: path.stat().st_mtime_ns for path in run.run_dir.rglob("*") if path.name[0] != "."}
    assert before == after


def test_a_longer_run_goes_on(train):
    train("run", "--trainer.max_steps=4", "--model.schedule.name=constant")
    longer = train("run", "--trainer.max_steps=8", "--model.schedule.name=constant")
    at_once = train("at_once", "--trainer.max_steps=8", "--model.schedule.name=constant")
    assert losses(longer.run_dir) == losses(at_once.run_dir)


def test_a_changed_learning_rate_takes_effect(train):
    words = ("--model.schedule.name=constant", "--model.schedule.warmup_steps=0")
    train("run", "--trainer.max_steps=4", *words)
    run = train("run", "--trainer.max_steps=8", "--model.optimizer.learning_rate=0.0125", *words)
    assert [entry["learning_rate"] for entry in read_log(run.run_dir)] == [3e-3] * 4 + [0.0125] * 4


def test_two_processes_in_one_folder_are_refused(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".owner.json").write_text(json.dumps({"pid": 12345, "host": "elsewhere"}))
    with FileLock(tmp_path / "run" / ".lock"):
        assert train().code == 2
    assert "in use by process 12345 on elsewhere" in capsys.readouterr().err
    assert train("run", "--trainer.max_steps=3").code == 0


def test_retention_follows_the_setting(train):
    run = train("run", "--checkpoint_every=2", "--checkpoint_keep=2")
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [10, 12]


def test_every_so_many_steps_a_checkpoint_stays(train):
    words = ("--checkpoint_every=2", "--checkpoint_keep=1", "--checkpoint_keep_every=4")
    train("run", "--trainer.max_steps=6", *words)
    run = train("run", *words)
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4, 8, 12]


@pytest.mark.parametrize("word", ["--data.data_dir={data}", "--trainer.limit_val_batches=0"])
def test_checkpoints_do_not_wait_for_a_validation_that_has_no_data(train, data_dir, tmp_path, word):
    data = tmp_path / "data"
    prepare(str(data_dir.parent / "text"), data, tokenizer=str(data_dir / "tokenizer"), splits={"train": 1.0})
    run = train("run", word.format(data=data), "--trainer.val_check_interval=8")
    assert run.code == 0
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4, 8, 12]


def test_the_checkpoint_of_the_lowest_validation_loss_stays(train, monkeypatch, capsys):
    wanted = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    before = MonetLightningModule.on_validation_epoch_end

    def replaced(self):
        before(self)
        self.validation_result["loss"] = next(wanted)

    monkeypatch.setattr(MonetLightningModule, "on_validation_epoch_end", replaced)
    words = ("--checkpoint_every=5", "--checkpoint_keep=1", "--checkpoint_keep_best=true",
             "--trainer.val_check_interval=4", "--model.schedule.total_steps=12")  # fmt: skip
    run = train("run", "--trainer.max_steps=6", *words)  # validates after steps 2, 4, 6
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4, 6]
    assert "step-00000004  lowest validation loss so far, 1.0000" in capsys.readouterr().out
    train("run", "--trainer.max_steps=8", *words)  # a continued run knows the lowest loss
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4, 8]
    train("run", "--trainer.max_steps=11", *words)
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [10, 11]


def test_another_tokenizer_is_refused(train, capsys):
    run = train("run", "--trainer.max_steps=4")
    with open(run.run_dir / "tokenizer" / "tokenizer.json", "a", encoding="utf-8") as file:
        file.write(" ")
    assert train().code == 2
    assert "tokenizer.json differs from" in capsys.readouterr().err


def test_bf16_runs(train):
    run = train("run", "--trainer.max_steps=3", "--trainer.precision=bf16-mixed")
    assert run.code == 0
    weights = load_file(run.checkpoints / "step-00000003" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}
