"""The launchers of docs/distributed.md, as two nodes of one process each on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.processes import ROOT, free_port
from monet.extras import install_command
from monet.training.ranks.coordination import launched_environment
from tests.distributed.conftest import TIMEOUT_SECONDS
from tests.marks import nightly
from tests.training.runs import read_log

TOLD = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_ranks_are_those_a_launcher_tells(monkeypatch):
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    assert launched_environment() is None
    monkeypatch.setenv("LOCAL_RANK", "1")  # only Lightning's own launcher sets no other variable
    assert launched_environment() is None
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    environment = launched_environment()
    assert environment is not None and environment.creates_processes_externally
    assert (environment.global_rank(), environment.local_rank(), environment.world_size()) == (3, 1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", nightly("deepspeed")])
def test_two_nodes(launcher, train, train_words, tmp_path):
    pytest.importorskip("deepspeed")
    words = train_words("run", "zero2", "--trainer.num_nodes=2", "--trainer.devices=1")
    port = free_port()
    (tmp_path / "hosts").write_text("node0 slots=1\nnode1 slots=1\n")
    commands = {
        "torchrun": lambda node: [
            "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test",
            f"--rdzv_endpoint=127.0.0.1:{port}",
        ],
        "deepspeed": lambda node: [
            "deepspeed.launcher.runner", f"--hostfile={tmp_path / 'hosts'}", "--no_ssh", f"--node_rank={node}",
            "--master_addr=127.0.0.1", f"--master_port={port}", "--no_local_rank",
        ],
    }  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    nodes = []
    for node in (0, 1):
        command = [sys.executable, "-m", *commands[launcher](node), *words]
        with open(tmp_path / f"node-{node}.txt", "wb") as out:
            nodes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out))
    try:
        codes = [node.wait(TIMEOUT_SECONDS) for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # a launcher ends its processes
    assert codes == [0, 0], [(tmp_path / f"node-{node}.txt").read_text() for node in (0, 1)]
    assert [entry["loss"] for entry in read_log(tmp_path / "run")] == pytest.approx(
        [entry["loss"] for entry in read_log(train("whole").run_dir)], abs=1e-5
    )


def test_zero_without_deepspeed_is_refused_in_one_line(train, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    assert train("run", "--trainer.strategy=zero2").code == 2
    error = capsys.readouterr().err
    assert "trainer.strategy: ZeRO needs DeepSpeed, which is not installed" in error
    assert install_command("deepspeed") in error
