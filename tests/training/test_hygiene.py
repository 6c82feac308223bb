"""A run's records: failing loggers, clocks that jump, changed settings, `monet verify`, one-line errors."""

import json
import time

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monet.cli import main as monet
from monet.errors import DataError, OutOfMemoryError, recognised
from monet.files import write_manifest
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.history import changed_settings
from monet.training.metrics import MetricsLog
from monet.training.module import MonetLightningModule
from monet.training.watch.clock import StepClock
from tests.training.runs import losses, read_log


def broken(*args, **kwargs):
    raise ConnectionError("the server is down")


@pytest.mark.parametrize("place", ["__init__", "experiment", "log_metrics", "save", "finalize"])
def test_a_logger_that_fails_anywhere_is_left_out_with_one_warning(train, monkeypatch, caplog, place):
    whole = train("whole")
    value = property(broken) if place == "experiment" else broken
    monkeypatch.setattr(TensorBoardLogger, place, value)
    with caplog.at_level("WARNING", logger="monet.training"):
        run = train("run", "--loggers=[tensorboard,csv]", "--trainer.log_every_n_steps=1")
    assert run.code == 0
    assert losses(run.run_dir) == losses(whole.run_dir)
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        "the logger tensorboard failed and is left out from here on: the server is down"
    ]
    assert (run.run_dir / "logs" / "csv" / "from-step-00000000" / "metrics.csv").is_file()


def test_wandb_that_is_missing_stops_nothing(train, caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with caplog.at_level("WARNING", logger="monet.training"):
        assert train("run", "--loggers=[wandb]", "--trainer.max_steps=4").code == 0
    assert len([record for record in caplog.records if "the logger wandb failed" in record.message]) == 1


def test_starts_of_a_run_share_one_run_of_wandb(train, monkeypatch, tmp_path):
    made, configurations = [], []

    class Wandb(CSVLogger):
        def __init__(self, **options):
            made.append(options)
            super().__init__(options["save_dir"])

        def log_hyperparams(self, params):
            configurations.append(params)

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", Wandb)
    words = ("--loggers=[wandb]", "--wandb_project=mine", "--model.schedule.name=constant")
    for steps in (4, 8):
        assert train("run", f"--trainer.max_steps={steps}", *words).code == 0
    assert train("other", "--trainer.max_steps=4", *words).code == 0
    first, second, other = made
    assert first == second and first["id"] and first["resume"] == "allow"
    assert (first["project"], first["name"], other["name"]) == ("mine", "run", "other")
    assert other["id"] != first["id"]
    assert [config["trainer"]["max_steps"] for config in configurations] == [4, 8, 4]
    assert configurations[0]["model"]["optimizer"]["learning_rate"] == 3e-3


def test_tensorboard_keeps_every_step_and_the_configuration(train):
    words = ("--loggers=[tensorboard]", "--trainer.log_every_n_steps=2", "--trainer.val_check_interval=8",
             "--model.schedule.name=constant")  # fmt: skip
    for steps in (4, 8):
        run = train("run", f"--trainer.max_steps={steps}", *words)
    events = EventAccumulator(str(run.run_dir / "logs" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    assert [event.step for event in events.Scalars("validation/loss")] == [4, 8]
    stored = yaml.safe_load((run.run_dir / "logs" / "tensorboard" / "hparams.yaml").read_text())
    assert stored["trainer"]["max_steps"] == 4 and stored["data"]["batch_size"] == 2


def test_a_folder_that_tensorboard_cannot_write_stops_nothing(train, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("a file where the folder would be")
    with caplog.at_level("WARNING", logger="monet.training"):
        run = train("run", "--loggers=[tensorboard,csv]")
    assert run.code == 0 and len(read_log(run.run_dir)) == 12
    assert len([record for record in caplog.records if "left out" in record.message]) == 2


def test_loggers_get_what_the_log_has(train, monkeypatch):
    seen = {}
    monkeypatch.setattr(CSVLogger, "log_metrics", lambda self, metrics, step: seen.setdefault(step, {}).update(metrics))
    run = train("run", "--trainer.log_every_n_steps=4")
    assert sorted(seen) == [4, 8, 12]
    log = {entry["step"]: entry for entry in read_log(run.run_dir)}
    assert all(seen[step]["train/loss"] == log[step]["loss"] for step in seen)
    assert seen[8]["validation/loss/code"] == read_log(run.run_dir, "validation.jsonl")[0]["loss_by_domain"]["code"]


def test_a_clock_that_jumps_changes_nothing(train, monkeypatch):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (1 if next(jumps) % 2 else -1))
    run = train()
    assert run.code == 0
    assert all(0 < entry["step_seconds"] < 600 and entry["tokens_per_second"] > 0 for entry in read_log(run.run_dir))


def test_the_clock_leaves_out_what_is_not_training():
    clock = StepClock()
    clock.batch_arrived()
    clock.take()
    time.sleep(0.05)
    clock.batch_arrived()
    time.sleep(0.02)
    clock.batch_done()
    time.sleep(0.2)  # a validation
    clock.resume()
    time.sleep(0.01)
    clock.batch_arrived()
    clock.batch_done()
    seconds, wait = clock.take()
    assert 0.06 <= wait < 0.2 and wait + 0.02 <= seconds < 0.25


@pytest.mark.slow
def test_validations_and_checkpoints_are_not_training(train, monkeypatch):
    def slowly(function):
        def slow(*arguments, **options):
            time.sleep(3)
            return function(*arguments, **options)

        return slow

    monkeypatch.setattr(MonetLightningModule, "on_validation_epoch_end",
                        slowly(MonetLightningModule.on_validation_epoch_end))  # fmt: skip
    monkeypatch.setattr(FolderCheckpointIO, "save_checkpoint", slowly(FolderCheckpointIO.save_checkpoint))
    log = read_log(train("run", "--checkpoint_every=5", "--trainer.max_steps=10").run_dir)
    assert [entry["step"] for entry in log if entry["step_seconds"] > 2.5] == []


def test_every_line_has_speed_memory_and_each_routers_health(train):
    for entry in read_log(train("run", "--trainer.max_steps=4").run_dir):
        assert entry["mfu"] is None  # no peak is published for this CPU
        assert entry["memory_bytes"] > 50e6
        assert 0 <= entry["data_wait_share"] < 1
        assert entry["tokens_per_second"] > 0
        assert [set(router) for router in entry["routers"]] == [
            {"uniformity", "ambiguity", "active_per_head", "dead_share"}
        ] * 2
        for name in ("uniformity", "ambiguity", "active_per_head", "dead_share"):
            assert entry[name] == pytest.approx(sum(router[name] for router in entry["routers"]) / 2)


def test_utilisation_counts_the_models_operations(train, monkeypatch, settings):
    from monet.costs.flops import training_flops_per_token
    from monet.training import metrics
    from monet.training.settings import ModelShape

    monkeypatch.setattr(metrics, "peak_flops", lambda device: 1e9)
    log = read_log(train("run", "--trainer.max_steps=4").run_dir)
    operations = training_flops_per_token(ModelShape(**settings["model"]["shape"]).config(), 32)
    assert [entry["mfu"] for entry in log] == [
        pytest.approx(entry["tokens_per_second"] * operations / 1e9) for entry in log
    ]


def test_the_log_is_there_before_the_first_step(train, monkeypatch):
    monkeypatch.setattr(MetricsLog, "on_train_batch_start", broken)
    run = train()
    assert run.code == 1 and (run.run_dir / "metrics.jsonl").read_text() == ""


def test_changed_settings_are_listed_and_kept(train, capsys):
    train("run", "--trainer.max_steps=4", "--model.schedule.name=constant")
    assert "changed since" not in capsys.readouterr().out
    words = ("--trainer.max_steps=8", "--model.schedule.name=constant", "--model.optimizer.learning_rate=0.01")
    assert train("run", *words).code == 0
    out = capsys.readouterr().out
    assert "changed since the last start: model.optimizer.learning_rate: 0.003 -> 0.01\n" in out
    assert "changed since the last start: trainer.max_steps: 4 -> 8\n" in out
    first, second = read_log(train("run", *words).run_dir, "starts.jsonl")
    assert first["changed"] == {} and first["step"] == 0 and second["step"] == 4
    assert second["changed"]["model.optimizer.learning_rate"] == {"before": 0.003, "now": 0.01}
    assert len(second["changed"]) == 2


def test_lines_cut_off_by_a_crash_are_dropped_and_the_log_goes_on(train):
    words = ("--model.schedule.name=constant", "--model.schedule.warmup_steps=0")
    run = train("run", "--trainer.max_steps=4", *words)
    for name in ("metrics.jsonl", "validation.jsonl", "spikes.jsonl", "starts.jsonl"):
        with open(run.run_dir / name, "ab") as file:
            file.write(b'{"step": 3, "loss": 1.\xff\0')
    assert train("run", "--trainer.max_steps=8", *words).code == 0
    assert [entry["step"] for entry in read_log(run.run_dir)] == list(range(1, 9))
    assert [entry["step"] for entry in read_log(run.run_dir, "validation.jsonl")] == [8]
    assert [entry["step"] for entry in read_log(run.run_dir, "starts.jsonl")] == [0, 4]
    assert read_log(run.run_dir, "spikes.jsonl") == []


def test_settings_differ_by_their_dotted_names():
    assert changed_settings({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}, "d": None}) == {
        "a.b": (1, 2), "d": ("(not set)", None)
    }  # fmt: skip


def test_verify_a_run_and_a_checkpoint(train, capsys):
    run = train()
    capsys.readouterr()
    assert monet(["verify", str(run.run_dir)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()] == [[f"step-{step:08d}", "valid"] for step in (4, 8, 12)]
    assert monet(["verify", "--full", str(run.checkpoints / "step-00000008")]) == 0
    assert capsys.readouterr().out.startswith("step-00000008  valid") and len(out.splitlines()) == 3


def test_verify_names_what_is_wrong(train, capsys):
    run = train()
    state, weights = (run.checkpoints / "step-00000008" / name for name in ("state.json", "model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert monet(["verify", str(run.run_dir)]) == 0
    assert monet(["verify", str(run.run_dir), "--full"]) == 4
    captured = capsys.readouterr()
    assert "1 of 3 not valid, 2 left" in captured.err and "model.safetensors: content differs" in captured.err
    assert "step-00000008  NOT VALID" in captured.out
    state.unlink()
    assert monet(["verify", str(run.checkpoints / "step-00000008")]) == 4
    assert "state.json is missing" in capsys.readouterr().err
    assert monet(["verify", str(run.run_dir / "logs")]) == 4
    assert monet(["verify", "nowhere"]) == 4


def test_verify_looks_for_numbers_that_are_not_finite(train, capsys):
    run = train("run", "--trainer.max_steps=4")
    folder = run.checkpoints / "step-00000004"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    (folder / "MANIFEST.json").unlink()
    write_manifest(folder)
    assert monet(["verify", str(folder)]) == 0
    assert monet(["verify", str(folder), "--full"]) == 4
    assert "model.norm.weight holds numbers that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("std::bad_alloc"), OSError(12, "Cannot allocate memory"),
])  # fmt: skip
def test_memory_that_runs_out_is_recognised(error):
    known = recognised(error)
    assert isinstance(known, OutOfMemoryError) and known.exit_code == 6
    assert "lower data.batch_size" in str(known)


def test_other_errors_are_not_taken_for_it():
    assert recognised(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert recognised(OSError(28, "No space left on device")) is None
    assert isinstance(recognised(RuntimeError("DataLoader worker (pid 1) is killed by signal")), DataError)
    error = DataError("shard 7")
    assert recognised(error) is error


@pytest.mark.parametrize(("raised", "code", "words"), [
    (torch.OutOfMemoryError("CUDA out of memory"), 6, "out of memory (CUDA out of memory); lower data.batch_size"),
    (json.JSONDecodeError("x", "y", 0), None, None),
])  # fmt: skip
def test_one_line_and_a_code_for_known_errors_a_traceback_for_ours(train, monkeypatch, capsys, raised, code, words):
    def fail(self, *args):
        raise raised

    monkeypatch.setattr(MetricsLog, "on_train_batch_start", fail)
    if code is None:
        with pytest.raises(type(raised)):
            train()
    else:
        assert train().code == code
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
