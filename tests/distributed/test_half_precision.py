"""bfloat16 on two real processes: a skipped step, a continued run, and the values kept in float32."""

from __future__ import annotations

import shutil

import pytest
import torch

from monet.training.checkpoints.tensor_files import StoredTensors
from tests.distributed.test_strategies import STRATEGIES, assert_same_state
from tests.training.runs import read_log

NIGHTLY = pytest.mark.nightly
HALF = "--trainer.precision=bf16-mixed"


@pytest.mark.nightly  # tests/training/watch/test_guard.py skips a step on two processes
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_a_skipped_step_and_a_continued_run(name, train_ranks, settings, tmp_path):
    pytest.importorskip("deepspeed")
    settings["model"]["nonfinite"] = {"policy": "skip"}
    settings["trainer"]["max_steps"] = 8
    run = train_ranks("run", STRATEGIES[name], HALF, command=("tests/training/bad_rank.py",))
    assert run.codes == [0, 0], run.errors
    log = read_log(run.run_dir)
    assert [entry["step"] for entry in log if entry["skipped"]] == [6]
    assert all(0 < entry["grad_norm"] < 100 for entry in log if not entry["skipped"])
    saved = sorted(path.name for path in run.checkpoints.iterdir())
    shutil.copytree(run.run_dir, tmp_path / "again")
    for later in saved[1:]:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / later)
    again = train_ranks("again", STRATEGIES[name], HALF, command=("tests/training/bad_rank.py",))
    assert again.codes == [0, 0], again.errors
    assert [entry["loss"] for entry in read_log(again.run_dir)] == [entry["loss"] for entry in log]
    assert sorted(path.name for path in again.checkpoints.iterdir()) == saved
    assert_same_state(again.checkpoints / saved[-1], run.checkpoints / saved[-1], 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [
    ("ddp", torch.bfloat16), ("fsdp2", torch.bfloat16), ("zero2", torch.float32),
    pytest.param("zero1", torch.float32, marks=NIGHTLY), pytest.param("zero3", torch.float32, marks=NIGHTLY),
])  # fmt: skip
def test_bf16_true_warns_where_it_keeps_no_float32_weights(name, dtype, train_ranks):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    run = train_ranks("run", STRATEGIES[name], "--trainer.precision=bf16-true", "--trainer.max_steps=3")
    assert run.codes == [0, 0], run.errors
    folder = run.checkpoints / "step-00000003"
    moments = StoredTensors(folder, "optimizer")
    kept = {moments[key].dtype for key in moments if "exp_avg" in key}
    assert kept | {StoredTensors(folder, "model")["model.embed_tokens.weight"].dtype} == {dtype}
    warned = "without a float32 copy" in run.errors[0]
    assert warned == (dtype == torch.bfloat16)
