"""Stages: a new run continues with weights and moments, on other data and with another batch."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import SHAPE, read_log

FIRST = "step-00000008"
CONSTANT = {"name": "constant"}


@pytest.fixture
def first(train, settings):
    """A run of eight steps with a constant rate."""
    settings["model"]["schedule"] = CONSTANT
    settings["model"]["shape"]["attention_dropout"] = 0.0
    run = train("first", "--trainer.max_steps=8")
    assert run.code == 0
    return run


def tensors(folder, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def test_a_stage_keeps_weights_and_moments_on_other_data_and_batches(train, first, settings, capsys):
    settings["data"] |= {"mixture": {"code": 1.0}, "seq_len": 48, "batch_size": 3, "seed": 5}
    settings["trainer"]["accumulate_grad_batches"] = 1
    # an update without effect: the first checkpoint holds the state at the start of the stage
    settings["model"]["optimizer"] = {"learning_rate": 1e-30, "weight_decay": 0.0, "beta1": 0.0}
    words = ("--trainer.max_steps=2", "--checkpoint_every=1", f"--stage_from={first.run_dir}")
    capsys.readouterr()
    run = train("second", *words)
    assert run.code == 0
    said = capsys.readouterr().out
    assert f"weights and moments of {first.checkpoints / FIRST}" in said
    before, after = first.checkpoints / FIRST, run.checkpoints / "step-00000001"
    old, new = tensors(before, "model"), tensors(after, "model")
    assert all(
        torch.equal(new[name], value) for name, value in old.items() if "norm1" not in name and "norm2" not in name
    )
    old, new = tensors(before, "optimizer"), tensors(after, "optimizer")
    assert old.keys() == new.keys()
    steps = {name for name in old if name.endswith("/step")}
    assert all(new[name] == old[name] + 1 == 9 for name in steps) and steps
    squares = [name for name in old if name.endswith("/exp_avg_sq")]
    # 0.95 of the old mean, plus a value that is never negative
    assert all((new[name] >= 0.949 * old[name]).all() for name in squares)
    assert any((old[name] > 0).any() for name in squares)
    log = read_log(run.run_dir)
    assert [entry["step"] for entry in log] == [1, 2]
    assert [entry["tokens_seen"] for entry in log] == [8 * 128 + 144, 8 * 128 + 288]
    # the run continues without the first one
    first.run_dir.rename(first.run_dir.with_name("moved"))
    assert train("second", "--trainer.max_steps=3", *words[1:]).code == 0
    begun, continued = read_log(run.run_dir, "starts.jsonl")
    assert begun["stage_from"] == str(before) and begun["step"] == 0 and continued["stage_from"] is None
    assert begun["changed"]["data.seq_len"] == {"before": 32, "now": 48}
    assert begun["changed"]["data.mixture.code"]["now"] == 1.0
    assert continued["step"] == 2


def test_a_stage_uses_the_moments(train, first, settings):
    """A stage's first step differs from that of a warm start, where Adam moves every weight by the whole rate."""
    stage = train("stage", "--trainer.max_steps=1", f"--stage_from={first.checkpoints / FIRST}")
    warm = train("warm", "--trainer.max_steps=1", f"--model.init_from={first.checkpoints / FIRST}")
    (stage_line,), (warm_line,) = read_log(stage.run_dir), read_log(warm.run_dir)
    assert stage_line["loss"] == warm_line["loss"]  # the same weights and windows
    before = tensors(first.checkpoints / FIRST, "model")
    names = [name for name in before if name.endswith("_proj.weight")]
    moved = []
    for run in (stage, warm):
        now = tensors(run.checkpoints / "step-00000001", "model")
        moved.append(float(torch.cat([(now[name] - before[name]).abs().flatten() for name in names]).mean()))
    assert moved[1] == pytest.approx(3e-3, rel=0.05)
    assert 1e-4 < moved[0] < 0.8 * moved[1]


def test_a_longer_context_is_a_stage_too(train, first, settings, capsys):
    settings["model"]["shape"] |= {"max_position_embeddings": 128, "rope_theta": 5e5}
    run = train("long", "--data.seq_len=96", "--trainer.max_steps=1", f"--stage_from={first.run_dir}")
    assert run.code == 0
    assert "rope_theta: checkpoint 10000.0, now 500000.0" in capsys.readouterr().out


def test_what_is_no_stage_is_refused_and_leaves_nothing(train, first, settings, tmp_path, capsys):
    stage = f"--stage_from={first.run_dir}"
    assert train("second", "--stage_from=nowhere").code == 4
    assert train("second", stage, f"--model.init_from={first.checkpoints / FIRST}").code == 2
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert train("empty", f"--stage_from={tmp_path / 'empty'}").code == 2
    assert "is the run itself" in capsys.readouterr().err
    assert train("second", f"--stage_from={tmp_path / 'empty'}").code == 4
    settings["model"]["shape"] = {**SHAPE, "moe_topk": 2}
    assert train("second", stage).code == 2
    assert "moe_topk: checkpoint 3, now 2" in capsys.readouterr().err
    settings["model"]["shape"] = dict(SHAPE)
    path = first.run_dir / "tokenizer" / "tokenizer.json"
    content = path.read_text()
    changed = json.loads(content)
    vocabulary = changed["model"]["vocab"]
    by_id = {index: token for token, index in vocabulary.items()}
    vocabulary[by_id[270]], vocabulary[by_id[271]] = 271, 270
    path.write_text(json.dumps(changed))
    assert train("second", stage).code == 2
    assert "stage_from = " in (error := capsys.readouterr().err) and "id 270 is" in error
    path.write_text(content)
    assert train("second", stage).code == 0
