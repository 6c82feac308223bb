"""`train.py validate`: a checkpoint's validation loss on any prepared data."""

import json
import random

import pytest

from monet.data.preparation.prepare import prepare
from monet.training.cli import main
from tests.training.runs import read_log


@pytest.fixture
def other_data(data_dir, tmp_path):
    """Another domain, prepared with the run's tokenizer."""
    (tmp_path / "text" / "poems").mkdir(parents=True)
    chooser = random.Random(3)
    for number in range(30):
        text = " ".join(chooser.choice(["moon", "sea", "night", "the", "far"]) for _ in range(150))
        (tmp_path / "text" / "poems" / f"{number}.txt").write_text(f"{number} {text}")
    prepare(str(tmp_path / "text"), tmp_path / "other", tokenizer=str(data_dir / "tokenizer"),
            splits={"train": 0.5, "validation": 0.5})  # fmt: skip
    return tmp_path / "other"


def test_the_runs_own_data_give_the_runs_own_numbers(train, data_dir, tmp_path, capsys):
    run = train()
    before = {path: path.stat().st_mtime_ns for path in run.run_dir.rglob("*")}
    capsys.readouterr()
    words = ["--checkpoint", str(run.checkpoints / "step-00000008"), "--json", str(tmp_path / "out.json")]
    assert main(["validate", "--run", str(run.run_dir), "--data", str(data_dir), *words]) == 0
    (logged,) = read_log(run.run_dir, "validation.jsonl")
    found = json.loads((tmp_path / "out.json").read_text())
    assert {key: found[key] for key in logged} == logged
    assert capsys.readouterr().out.splitlines()[-1].startswith("step 8  validation perplexity")
    assert {path: path.stat().st_mtime_ns for path in run.run_dir.rglob("*")} == before


def test_the_newest_checkpoint_on_other_data(train, data_dir, other_data, tmp_path, capsys):
    run = train("run", "--trainer.max_steps=4")
    out = tmp_path / "out.json"
    words = ["validate", "--run", str(run.run_dir), "--data", str(other_data), "--json", str(out)]
    assert main(words) == 0
    found = json.loads(out.read_text())
    assert found["step"] == 4 and list(found["loss_by_domain"]) == ["poems"]
    assert main([*words, "--all_windows=true", "--seq_len=16"]) == 0
    assert json.loads(out.read_text())["loss"] != found["loss"]


def test_what_cannot_be_validated_is_refused(train, data_dir, tmp_path, capsys):
    run = train("run", "--trainer.max_steps=4")
    own = ["validate", "--run", str(run.run_dir), "--data"]
    assert main([*own, str(tmp_path)]) == 3
    assert main([*own, str(data_dir), "--all_windows=true", "--max_val_windows=2"]) == 2
    assert main(["validate", "--run", str(tmp_path), "--data", str(data_dir)]) == 4
    capsys.readouterr()
    path = run.run_dir / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    by_id = {index: token for token, index in vocabulary.items()}
    vocabulary[by_id[270]], vocabulary[by_id[271]] = 271, 270
    path.write_text(json.dumps(content))
    assert main([*own, str(data_dir)]) == 2
    assert "id 270 is" in capsys.readouterr().err
