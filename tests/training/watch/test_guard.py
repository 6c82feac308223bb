"""Bad steps skipped or refused, alike on all ranks; spikes; and the log of all of them."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from lightning.pytorch import Callback

from monet.training import lightning_cli as cli
from monet.training.checkpoints.checkpoint import list_checkpoints, newest_valid, step_of
from monet.training.ranks.agree import Requests
from monet.training.watch.spikes import SpikeWindow
from tests.marks import nightly
from tests.training.runs import losses, read_log

ROOT = Path(__file__).resolve().parents[3]


class Poison(Callback):
    """Spoils the forward pass of some steps: NaN in the input of every router of the batch."""

    def __init__(self, steps):
        self.steps, self.hooks = set(steps), []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 in self.steps:
            for router in pl_module.model.routers():
                hook = router.register_forward_pre_hook(lambda part, inputs: (inputs[0] * math.nan, *inputs[1:]))
                self.hooks.append(hook)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        while self.hooks:
            self.hooks.pop().remove()


@pytest.fixture
def poisoned(train, monkeypatch):
    """A run with bad steps; its callback for random states stays in place."""

    def run(steps, *words, name="run"):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "TokenizerCopy", lambda _: Poison(steps))
            return train(name, *words)

    return run


SKIP = "--model.nonfinite.policy=skip"


def test_a_bad_step_is_left_out_and_the_next_one_is_good(poisoned):
    with pytest.warns(UserWarning, match=r"step 6: the loss is nan \(window ids .*left out, 1 of at most 5 in a row"):
        run = poisoned([6], SKIP)
    assert run.code == 0
    log = read_log(run.run_dir)
    assert [entry["step"] for entry in log] == list(range(1, 13))
    assert [entry["step"] for entry in log if entry["skipped"]] == [6]
    assert log[5]["loss"] is None and log[5]["grad_norm"] is None
    assert all(
        math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in log if entry["step"] != 6
    )


def test_a_step_left_out_changes_no_weight_moment_or_router_statistic(poisoned, monkeypatch):
    states = {}

    class Spy(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            (optimizer,) = trainer.optimizers
            moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
            tensors = [tensor.detach().clone() for tensor in pl_module.model.state_dict().values()]
            states.setdefault(trainer.global_step, tensors + moments)  # right after the step

    monkeypatch.setattr(cli, "RandomState", Spy)
    with pytest.warns(UserWarning, match="left out"):
        assert poisoned([6], SKIP).code == 0
    assert all(torch.equal(a, b) for a, b in zip(states[5], states[6], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[6], states[7], strict=True))
    assert all(tensor.isfinite().all() for tensor in states[12])


def test_too_many_bad_steps_in_a_row_stop_the_run(poisoned, capsys):
    with pytest.warns(UserWarning, match="left out, 2 of at most 2"):
        run = poisoned(range(6, 12), SKIP, "--model.nonfinite.max_consecutive_skips=2")
    assert run.code == 5
    assert "step 8: the loss is nan" in capsys.readouterr().err
    assert newest_valid(run.checkpoints).step == 4


def test_good_steps_between_bad_ones_start_the_count_anew(poisoned):
    with pytest.warns(UserWarning, match="left out, 1 of at most 1"):
        assert poisoned([3, 5, 7], SKIP, "--model.nonfinite.max_consecutive_skips=1").code == 0


def test_a_skipped_step_gets_no_checkpoint_the_next_good_one_does(poisoned):
    with pytest.warns(UserWarning, match="left out"):
        run = poisoned([4], SKIP, "--checkpoint_keep=9")
    assert [step_of(folder) for folder in list_checkpoints(run.checkpoints)] == [5, 8, 12]


def test_the_count_survives_a_restart(poisoned, train):
    """Bad steps before and after a stop at the same place count together."""
    words = (SKIP, "--model.nonfinite.max_consecutive_skips=2", "--model.schedule.name=constant")
    with pytest.warns(UserWarning, match="left out, 1 of at most 2"):
        assert poisoned([6], *words, "--trainer.max_steps=6").code == 0
    with pytest.warns(UserWarning, match="left out, 2 of at most 2"):
        assert poisoned([7, 8], *words).code == 5


def test_a_bad_step_is_described_in_the_runs_folder(poisoned):
    run = poisoned([6])
    assert run.code == 5
    report = json.loads((run.run_dir / "nonfinite" / "step-00000006.rank-0.json").read_text())
    assert report["step"] == 6 and report["skipped"] is False and report["bad_ranks"] == [0]
    assert len(report["batches"]) == 2
    for batch in report["batches"]:
        assert len(batch["windows"]) == len(batch["documents"]) == len(batch["domains"]) == 2
        assert set(batch["domains"]) <= {"animals", "code"}
    rows = {row["part"]: row for row in report["parts"]}
    assert {"model.embed_tokens", "model.layers.0", "model.layers.2", "model.norm"} <= rows.keys()
    first = rows["model.layers.0"]
    assert first["weight_norm"] > 0 and first["nonfinite_weights"] == 0
    assert first["gradient_norm"] is None and first["nonfinite_gradients"] > 0
    assert first["nonfinite_statistics"] > 0


def test_a_window_with_a_nan_would_be_blind_ours_is_not():
    window = SpikeWindow(size=128, least=10)
    for step in range(200):
        assert window.judge(3.0 + 0.01 * (step % 7)) is None
    assert window.judge(math.nan) is None and window.judge(math.inf) is None
    spike = window.judge(9.0)
    assert spike is not None and spike.mean == pytest.approx(3.03, abs=0.01)
    other = SpikeWindow(size=128, least=10)
    other.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert other.judge(9.5) == window.judge(9.5)


def test_few_losses_are_no_window():
    window = SpikeWindow(least=10)
    assert [window.judge(1.0) for _ in range(9)] == [None] * 9
    assert window.judge(100.0) is None
    assert window.judge(1.0) is None


def test_a_spike_is_recorded_with_its_documents(train, monkeypatch):
    monkeypatch.setattr("monet.training.watch.guard.SpikeWindow", lambda: SpikeWindow(least=4, deviations=-1e6))
    run = train()
    spikes = read_log(run.run_dir, "spikes.jsonl")
    assert [spike["step"] for spike in spikes] == list(range(5, 13))
    assert [spike["loss"] for spike in spikes] == [loss for _, loss in losses(run.run_dir)[4:]]
    for spike in spikes:
        assert len(spike["windows"]) == len(spike["documents"]) == len(spike["domains"]) == 4
        assert spike["mean"] > 0 and spike["deviation"] > 0


def rank_of_two(rank, port, queue):
    """A step whose third micro-batch is bad only on rank 1, handled by the guard of each rank."""
    from types import SimpleNamespace

    import torch.distributed as dist

    from monet.errors import NonFiniteError
    from monet.training.watch.guard import StepGuard
    from monet.training.watch.nonfinite import NonFiniteSettings

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), global_step=6, global_rank=rank, world_size=2
    )
    found = []
    for bad, norm, stop in [(None, 1.0, 0), (1, 1.0, 0), (None, math.inf, 0), (None, 1.0, 15 * rank)]:
        guard = StepGuard(torch.nn.Linear(2, 2), NonFiniteSettings())
        guard.requests.stop = stop
        for place in range(3):
            loss = torch.tensor(math.nan if bad == rank and place == 2 else 1.0 + rank)
            batch = {"index": torch.tensor([10 * rank + place]), "domain": torch.tensor([0])}
            guard.record.add(batch, SimpleNamespace(loss=loss, lm_loss=loss, router_metrics=()))
        try:
            numbers = guard.settle(torch.tensor(norm), trainer, ["text"])
            found.append((numbers.losses["loss"], guard.requests.agreed_stop))
        except NonFiniteError as error:
            found.append(str(error))
    queue.put((rank, found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_on_what_only_one_of_them_saw():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=rank_of_two, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    good, bad_loss, bad_gradient, stopped = zip(found[0], found[1], strict=True)
    assert good[0] == good[1] == (1.5, 0)
    assert bad_loss[0] == "step 7: the loss is nan on rank 1 (this rank's own batches were good)"
    assert bad_loss[1] == "step 7: the loss is nan on rank 1 (window ids 12; domains text)"
    unseen = "step 7: the gradient is not finite (the strategy does not show in which parameters) (window ids"
    assert all(text.startswith(unseen) for text in bad_gradient)
    assert stopped[0] == stopped[1] == (1.5, 15)


def test_requests_of_one_process_count_at_once():
    requests = Requests()
    requests.stop, requests.save = 2, True
    assert requests.agreed_stop == 2 and requests.agreed_save
    requests.saved()
    assert not requests.agreed_save


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "code", "newest"), [("stop", 5, 4), nightly("skip", 0, 12)])
def test_two_processes_stop_or_skip_together(settings, tmp_path, policy, code, newest):
    settings["data"]["batch_size"] = 1
    settings["trainer"] |= {"devices": 2, "strategy": "ddp"}
    settings["model"]["nonfinite"] = {"policy": policy}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = ["fit", "--config", str(tmp_path / "config.yaml"), "--run_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "tests/training/bad_rank.py", *words],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "step 6: the loss is nan on rank 1" in done.stderr
    assert newest_valid(tmp_path / "run" / "checkpoints").step == newest
    reports = sorted((tmp_path / "run" / "nonfinite").iterdir())
    assert [path.name for path in reports] == ["step-00000006.rank-0.json", "step-00000006.rank-1.json"]
    assert all(json.loads(path.read_text())["bad_ranks"] == [1] for path in reports)
    log = read_log(tmp_path / "run")
    assert [entry["step"] for entry in log if entry["skipped"]] == ([6] if policy == "skip" else [])
