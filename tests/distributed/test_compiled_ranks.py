"""`compile: true` on two real processes: the losses of an eager run of one process, and runs that continue."""

from __future__ import annotations

import pytest

from tests.distributed.test_strategies import STRATEGIES
from tests.training.runs import losses, read_log


@pytest.mark.nightly  # tests/training/test_compiled.py compiles one process
@pytest.mark.parametrize("name", ["ddp", "zero2", "fsdp2", "zero1"])
def test_two_compiled_ranks_are_one_eager_process_and_continue(name, train, train_ranks, settings):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    settings["model"]["shape"]["num_hidden_layers"] = 2
    settings["trainer"]["accumulate_grad_batches"] = 1
    whole = train("whole")
    for steps in (3, 6):
        run = train_ranks("run", STRATEGIES[name], f"--trainer.max_steps={steps}", "--compile=true")
        assert run.codes == [0, 0], run.errors
    assert "after step 3" in run.out
    wanted = [loss for _, loss in losses(whole.run_dir)]
    assert [loss for _, loss in losses(run.run_dir)] == pytest.approx(wanted, rel=1e-4)
    validation = [read_log(folder, "validation.jsonl")[-1]["loss"] for folder in (run.run_dir, whole.run_dir)]
    assert validation[0] == pytest.approx(validation[1], rel=1e-4)
