"""Learning from a teacher on two real processes: the divergence and the weights are those of one process."""

from __future__ import annotations

import pytest
import torch

from monet.training.checkpoints.checkpoint import read_weights
from monet.training.checkpoints.tensor_files import StoredTensors
from tests.distributed.test_strategies import ZERO_3, assert_same_numbers, assert_same_state
from tests.marks import nightly
from tests.training.runs import read_log
from tests.training.teachers import learning_hybrid

STRATEGIES = {"ddp": "ddp", "fsdp2": "fsdp2", "zero2": "zero2", "zero3": ZERO_3}
TOLERANCE = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2", *(nightly(name) for name in ("zero3", "fsdp2"))])
def test_two_ranks_learn_as_one_process(name, train, train_ranks, settings, tmp_path):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    settings["model"] |= learning_hybrid(tmp_path)
    whole = train("whole")
    run = train_ranks("run", STRATEGIES[name])
    assert run.codes == [0, 0], run.errors
    assert_same_numbers(run.run_dir, whole.run_dir)
    for file in ("metrics.jsonl", "validation.jsonl"):
        got, wanted = read_log(run.run_dir, file), read_log(whole.run_dir, file)
        assert [entry["kl"] for entry in got] == pytest.approx([entry["kl"] for entry in wanted], abs=TOLERANCE)
    last = run.checkpoints / "step-00000006"
    assert_same_state(last, whole.checkpoints / last.name, TOLERANCE)
    before, after = read_weights(tmp_path / "hybrid"), read_weights(last)
    learned = {key for key in after if not torch.equal(after[key], before[key])}
    assert learned and all(".router." in key or ".moe." in key for key in learned), "all other weights are frozen"
    assert not any("self_attn" in key for key in StoredTensors(last, "optimizer"))
    assert not any("teacher" in key for key in after)
