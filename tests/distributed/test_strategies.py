"""Two real processes under each strategy against one with the same global batch, and runs that change strategy."""

from __future__ import annotations

import shutil

import pytest
import torch

from monet.training.checkpoints.checkpoint import newest_valid, read_weights
from monet.training.checkpoints.tensor_files import StoredTensors
from tests.marks import nightly
from tests.training.runs import read_log

# float32 sums in another order: measured 7e-7 in the losses, 1e-6 in the weights
TOLERANCE = 1e-5
# stage 3 keeps small parameters whole by default
ZERO_3 = {
    "class_path": "monet.training.strategies.Zero",
    "init_args": {"stage": 3, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
}
STRATEGIES = {"ddp": "ddp", "fsdp2": "fsdp2", "zero1": "zero1", "zero2": "zero2", "zero3": ZERO_3}
FAILING = ("-m", "tests.distributed.failing_rank")
LOGGED = ("loss", "lm_loss", "uniformity", "ambiguity", "active_per_head", "dead_share", "grad_norm", "learning_rate")


def assert_same_numbers(run_dir, wanted_dir, first_step=1):
    got, wanted = read_log(run_dir), read_log(wanted_dir)
    assert [entry["step"] for entry in got] == [entry["step"] for entry in wanted]
    for ours, theirs in zip(got[first_step - 1 :], wanted[first_step - 1 :], strict=True):
        for key in LOGGED:
            assert ours[key] == pytest.approx(theirs[key], abs=TOLERANCE), f"{key} at step {ours['step']}"


def assert_same_state(checkpoint, wanted, tolerance):
    for stem in ("model", "optimizer"):
        ours, theirs = StoredTensors(checkpoint, stem), StoredTensors(wanted, stem)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert ours[name].dtype == theirs[name].dtype
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


SLOW = [
    nightly("zero3"),
    pytest.param("fsdp2", marks=pytest.mark.slow),
    nightly("zero1"),
]


@pytest.mark.parametrize("name", ["ddp", "zero2", *SLOW])
def test_two_ranks_are_one_process_and_continue_bit_for_bit(name, train, train_ranks, tmp_path):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    whole = train("whole")
    run = train_ranks("run", STRATEGIES[name])
    assert run.codes == [0, 0], run.errors
    assert_same_numbers(run.run_dir, whole.run_dir)
    last = "step-00000006"
    assert_same_state(run.checkpoints / last, whole.checkpoints / last, TOLERANCE)
    validation = [read_log(folder, "validation.jsonl")[-1]["loss"] for folder in (run.run_dir, whole.run_dir)]
    assert validation[0] == pytest.approx(validation[1], abs=TOLERANCE)
    # repeat the second half, as after a kill
    shutil.copytree(run.run_dir, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / last)
    again = train_ranks("again", STRATEGIES[name])
    assert again.codes == [0, 0], again.errors
    assert "after step 3" in again.out
    assert [entry["loss"] for entry in read_log(again.run_dir)] == [entry["loss"] for entry in read_log(run.run_dir)]
    assert_same_state(again.checkpoints / last, run.checkpoints / last, 0)


@pytest.mark.slow
def test_a_run_goes_from_two_ranks_to_one_and_back(train, train_ranks, tmp_path):
    """ZeRO 3 on two ranks, one process, two ranks with ZeRO 2: the order of the windows stays, and so do the losses."""
    pytest.importorskip("deepspeed")
    whole = train("whole", "--trainer.max_steps=9")
    assert train_ranks("run", ZERO_3, "--trainer.max_steps=3").codes == [0, 0]
    assert train("run", "--trainer.max_steps=6").code == 0
    run = train_ranks("run", "zero2", "--trainer.max_steps=9")
    assert run.codes == [0, 0], run.errors
    assert_same_numbers(run.run_dir, whole.run_dir)
    assert [entry["tokens_seen"] for entry in read_log(run.run_dir)] == [
        entry["tokens_seen"] for entry in read_log(whole.run_dir)
    ]
    done = train_ranks("run", "zero2", "--trainer.max_steps=9")
    assert done.codes == [0, 0], "a finished run ends on all ranks"
    assert "nothing to do" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", nightly("zero2")])
def test_a_stage_on_two_ranks_is_that_of_one_process(name, train, train_ranks):
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    first = train("first", "--trainer.max_steps=3")
    words = ("--trainer.max_steps=3", "--data.seq_len=24", f"--stage_from={first.run_dir}")
    one = train("one", *words)
    two = train_ranks("two", STRATEGIES[name], *words)
    assert two.codes == [0, 0], two.errors
    assert_same_numbers(two.run_dir, one.run_dir)
    assert_same_state(two.checkpoints / "step-00000003", one.checkpoints / "step-00000003", TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [nightly("ddp"), "fsdp2", nightly("zero1")])
def test_checkpoints_of_every_strategy_export_to_the_same_model(name, train_ranks, tmp_path):
    from monet.convert.export import export

    run = train_ranks("run", STRATEGIES[name], "--trainer.max_steps=3")
    assert run.codes == [0, 0], run.errors
    export(tmp_path / "model", run=run.run_dir)
    weights = read_weights(run.checkpoints / "step-00000003")
    exported = StoredTensors(tmp_path / "model", "model")
    assert all(torch.equal(exported[key], weights[key]) for key in weights)


@pytest.mark.slow
def test_a_rank_that_dies_in_a_save_leaves_no_checkpoint_and_is_named(train, train_ranks):
    strategy = {"class_path": "monet.training.strategies.DataParallel", "init_args": {"timeout_minutes": 0.5}}
    run = train_ranks("run", strategy, command=FAILING, FAULT="save")
    assert run.codes == [4, -9], run.errors
    assert "rank 1 died" in run.errors[0] and "step-00000006" in run.errors[0]
    assert newest_valid(run.checkpoints).step == 3
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000003"]
    whole = train("whole")
    assert train_ranks("run", "ddp").codes == [0, 0]
    assert_same_numbers(run.run_dir, whole.run_dir)


def test_a_rank_that_dies_in_a_step_ends_the_others_in_one_line_and_is_named(train_ranks):
    run = train_ranks("run", "ddp", command=FAILING, FAULT="step")
    assert run.codes == [1, -9], run.errors
    (line,) = [line for line in run.errors[0].splitlines() if "error:" in line]
    assert line.startswith("train.py: error: rank 1 died or does not answer")
    assert "Traceback" not in run.errors[0]
    assert newest_valid(run.checkpoints).step == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [nightly("ddp"), "zero3"])
def test_checkpoints_beside_the_training_are_the_same_on_two_ranks(name, train_ranks):
    """Every step has a checkpoint, so the next save waits for it; the writing threads of both ranks share a channel."""
    often = ("--trainer.max_steps=4", "--checkpoint_every=1", "--checkpoint_keep=9")
    plain = train_ranks("plain", STRATEGIES[name], *often)
    beside = train_ranks("beside", STRATEGIES[name], *often, "--checkpoint_async=true")
    assert (plain.codes, beside.codes) == ([0, 0], [0, 0]), beside.errors
    folders = sorted(plain.checkpoints.iterdir())
    assert [folder.name for folder in folders] == [f"step-{step:08d}" for step in (1, 2, 3, 4)]
    for folder in folders:
        again = beside.checkpoints / folder.name
        names = {path.name for path in folder.iterdir()}
        assert "rank-00001.safetensors" in names and names == {path.name for path in again.iterdir()}
        for name in names:
            assert (folder / name).read_bytes() == (again / name).read_bytes(), name


SMALL_FILES = """
import sys
from monet.training.checkpoints import tensor_files
from monet.training.cli import main
tensor_files.FILE_BYTES = 8192
sys.exit(main())
"""


@pytest.mark.slow
def test_local_statistics_are_rank_0s_whichever_rank_writes_them(train_ranks):
    """With files of this size, rank 1 writes all of them."""
    words = ("--model.router_statistics=local", "--trainer.max_steps=3")
    whole = train_ranks("whole", "ddp", *words)  # one file, which rank 0 writes
    split = train_ranks("split", "ddp", *words, command=("-c", SMALL_FILES))
    assert (whole.codes, split.codes) == ([0, 0], [0, 0]), split.errors
    last = "step-00000003"
    assert len(list((split.checkpoints / last).glob("model-*.safetensors"))) > 2
    assert_same_state(split.checkpoints / last, whole.checkpoints / last, 0)


@pytest.mark.parametrize("beside", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_one_full_disk_fails_the_checkpoint_of_all_and_training_goes_on(beside, train_ranks):
    words = (f"--checkpoint_async={beside}", "--checkpoint_failure=continue")
    run = train_ranks("run", "ddp", *words, command=FAILING, FAULT="disk")
    assert run.codes == [0, 0], run.errors
    assert "step-00000003" in run.errors[0] and "No space left on device" in run.errors[0]
    assert "(rank 1)" in run.errors[0] and "training continues" in run.errors[0]
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000006"]
