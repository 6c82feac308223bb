"""Checkpoints written in the background: one writer, awaited, failures raised, the same bytes."""

import threading
import time

import pytest
import torch

from monet.errors import CheckpointError
from monet.training.checkpoints.background import BackgroundCheckpointIO
from monet.training.checkpoints.checkpoint import list_checkpoints, step_of
from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.checkpoints.states import Own
from tests.training.runs import losses

ASYNC = "--checkpoint_async=true"


@pytest.fixture
def slow_writes(monkeypatch):
    """Each write takes a while; returns (steps begun, most writers at once, errors to raise by step)."""
    write, seen, lock = FolderCheckpointIO.save_checkpoint, {"begun": [], "now": 0, "most": 0, "threads": set()}, None
    lock = threading.Lock()
    failures = {}

    def slow(self, checkpoint, path, storage_options=None):
        with lock:
            seen["begun"].append(step_of(path))
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
            seen["threads"].add(threading.current_thread().name)
        time.sleep(0.3)
        try:
            if (error := failures.get(step_of(path))) is not None:
                raise error
            write(self, checkpoint, path, storage_options)
        finally:
            with lock:
                seen["now"] -= 1

    monkeypatch.setattr(FolderCheckpointIO, "save_checkpoint", slow)
    seen["failures"] = failures
    return seen


def test_the_same_checkpoints_as_without(train, slow_writes):
    plain, beside = train("plain"), train("beside", ASYNC)
    assert plain.code == beside.code == 0
    assert losses(beside.run_dir) == losses(plain.run_dir)
    assert [step_of(folder) for folder in list_checkpoints(beside.checkpoints)] == [4, 8, 12]
    for folder in list_checkpoints(plain.checkpoints):
        for path in folder.iterdir():
            assert path.read_bytes() == (beside.checkpoints / folder.name / path.name).read_bytes(), path.name


def test_the_next_write_waits_and_the_end_awaits_the_last(train, slow_writes):
    run = train("run", ASYNC, "--checkpoint_every=1", "--checkpoint_keep=20")
    assert run.code == 0
    assert slow_writes["begun"] == list(range(1, 13))
    assert slow_writes["most"] == 1 and slow_writes["now"] == 0
    assert not any(name == "MainThread" for name in slow_writes["threads"])
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == list(range(1, 13))


def test_a_failure_is_raised_at_a_later_step(train, slow_writes, capsys):
    slow_writes["failures"][4] = CheckpointError("cannot write checkpoint step-00000004: no space")
    run = train("run", ASYNC)
    assert run.code == 4
    error = capsys.readouterr().err
    assert "cannot write checkpoint step-00000004: no space; a checkpoint takes about" in error
    assert list_checkpoints(run.checkpoints) == []
    assert slow_writes["begun"] == [4]


def test_a_failure_can_be_survived_but_not_at_the_end(train, slow_writes):
    slow_writes["failures"][4] = OSError(28, "No space left on device")
    with pytest.warns(UserWarning, match="No space left on device.*training continues"):
        run = train("run", ASYNC, "--checkpoint_failure=continue")
    assert run.code == 0
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [8, 12]
    slow_writes["failures"][12] = OSError(28, "No space left on device")
    assert train("other", ASYNC, "--checkpoint_failure=continue").code == 4


def test_a_run_that_fails_elsewhere_still_finishes_its_write(train, slow_writes, monkeypatch):
    from monet.training.metrics import MetricsLog

    written = MetricsLog.on_train_batch_end

    def fail(self, trainer, *args):
        written(self, trainer, *args)
        if trainer.global_step == 5:
            raise OSError("elsewhere")

    monkeypatch.setattr(MetricsLog, "on_train_batch_end", fail)
    run = train("run", ASYNC)
    assert run.code == 1
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [4]
    assert slow_writes["now"] == 0


def test_what_changes_after_the_call_is_not_written():
    class Slow:
        def save_checkpoint(self, checkpoint, path):
            time.sleep(0.2)
            self.saved = checkpoint

        def teardown(self):
            pass

    io = BackgroundCheckpointIO(Slow())
    weight, settings, own = torch.ones(3), {"lr": 1.0}, Own(gathered=torch.ones(2))
    other = torch.ones(2, device="meta")
    io.save_checkpoint({"weight": weight, "groups": [settings], "other": other, "moments": own}, "step")
    weight.zero_()
    settings["lr"] = 2.0
    assert not io.poll()
    io.teardown()
    assert io.poll()
    assert torch.equal(io.io.saved["weight"], torch.ones(3)) and io.io.saved["groups"] == [{"lr": 1.0}]
    assert io.io.saved["moments"]["gathered"] is own["gathered"], "what was gathered for the checkpoint is copied twice"


def test_one_write_at_a_time_whoever_asks():
    class Slow:
        now = most = 0
        saved = []

        def save_checkpoint(self, checkpoint, path):
            self.now += 1
            self.most = max(self.most, self.now)
            time.sleep(0.1)
            self.saved.append(path)
            self.now -= 1

    io = BackgroundCheckpointIO(Slow())
    for number in range(4):
        io.save_checkpoint({}, number)
    io.finish()
    assert io.io.most == 1 and io.io.saved == [0, 1, 2, 3]
