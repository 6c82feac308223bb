"""Fine-tuning with a frozen router on two real processes: no router moves, and the losses are those of one process."""

from __future__ import annotations

import pytest
import torch

from monet.training.checkpoints.checkpoint import read_weights
from monet.training.checkpoints.tensor_files import StoredTensors
from tests.distributed.test_strategies import ZERO_3, assert_same_numbers, assert_same_state

STRATEGIES = {"fsdp2": "fsdp2", "zero2": "zero2", "zero3": ZERO_3}  # parameters or gradients in parts
NIGHTLY = pytest.mark.nightly
TOLERANCE = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3", *(pytest.param(name, marks=NIGHTLY) for name in ("fsdp2", "zero2"))])
def test_a_frozen_router_does_not_move_on_any_rank(name, train, train_ranks, settings):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    assert train("source").code == 0
    source = train("source").checkpoints / "step-00000006"
    settings["model"] |= {"init_from": str(source), "freeze_router": True}
    whole = train("whole")
    assert whole.code == 0
    run = train_ranks("run", STRATEGIES[name])
    assert run.codes == [0, 0], run.errors
    assert_same_numbers(run.run_dir, whole.run_dir)
    last = run.checkpoints / "step-00000006"
    assert_same_state(last, whole.checkpoints / last.name, TOLERANCE)
    before, after = read_weights(source), read_weights(last)
    frozen = {key for key in after if ".router." in key}
    assert frozen == {key for key in after if torch.equal(after[key], before[key])}
    assert not any(".router." in key for key in StoredTensors(last, "optimizer"))
    # it continues from its own checkpoint
    more = train_ranks("run", STRATEGIES[name], "--trainer.max_steps=8")
    assert more.codes == [0, 0], more.errors
    after = read_weights(run.checkpoints / "step-00000008")
    assert frozen == {key for key in after if torch.equal(after[key], before[key])}
