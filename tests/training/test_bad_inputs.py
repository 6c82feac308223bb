"""Bad inputs to training, export and generation: the exit code, and a message that names the value."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from monet.cli import main as monet
from monet.training.checkpoints.checkpoint import CONFIG, STATE
from tests.training.runs import SHAPE

USAGE, DATA, CHECKPOINT = 2, 3, 4


class Row(NamedTuple):
    """A wrong setting: words of the command line or a change of the YAML, and what the message must say."""

    name: str
    code: int
    message: str
    words: tuple[str, ...] = ()
    change: tuple[str, object] | None = None


SETTINGS = [
    Row("unknown key in the file", USAGE, "hiden_size", change=("model.shape.hiden_size", 64)),
    Row("unknown word", USAGE, "trainer.maxsteps", ("--trainer.maxsteps=5",)),
    Row("text for a number", USAGE, r"hidden_size.*wide", change=("model.shape.hidden_size", "wide")),
    Row("number for a choice", USAGE, r"moe_decompose.*diagonal", change=("model.shape.moe_decompose", "diagonal")),
    Row("missing size", USAGE, "moe_experts", change=("model.shape.moe_experts", None)),
    Row("odd width of vertical experts", USAGE, "moe_dim=3", change=("model.shape.moe_dim", 3)),
    Row("more keys than there are", USAGE, "moe_topk=9.*moe_experts=8", change=("model.shape.moe_topk", 9)),
    Row("negative learning rate", USAGE, r"learning_rate.*-0\.1", ("--model.optimizer.learning_rate=-0.1",)),
    Row("warm-up longer than the run", USAGE, "warmup_steps = 99.*12", ("--model.schedule.warmup_steps=99",)),
    Row("negative loss weight", USAGE, "uniformity_weight=-1", ("--model.router_loss.uniformity_weight=-1",)),
    Row("unknown uniformity", USAGE, "uniformity_on.*all", ("--model.router_loss.uniformity_on=all",)),
    Row("endless run", USAGE, "trainer.max_steps.*-1", ("--trainer.max_steps=-1",)),
    Row("no checkpoints", USAGE, "checkpoint_every.*0", ("--checkpoint_every=0",)),
    Row("keeping every zeroth", USAGE, "checkpoint_keep_every.*0", ("--checkpoint_keep_every=0",)),
    Row("no window for dead keys", USAGE, "dead_window_steps.*0", ("--model.dead_window_steps=0",)),
    Row("foreign logger", USAGE, r"trainer\.logger.*run_dir", ("--trainer.logger=true",)),
    Row("unknown logger", USAGE, "loggers.*mlflow", ("--loggers=[mlflow]",)),
    Row("clipping by value", USAGE, "gradient_clip_algorithm = value", ("--trainer.gradient_clip_algorithm=value",)),
    Row("unknown device", USAGE, "abacus", ("--trainer.accelerator=abacus",)),
    Row("configuration that is not there", USAGE, "absent.yaml", ("--config", "absent.yaml")),
    Row("data that are not there", DATA, "nowhere.*no prepared data", ("--data.data_dir=nowhere",)),
    Row("vocabulary below the tokenizer's", USAGE, "vocab_size = 270.*280", ("--model.shape.vocab_size=270",)),
    Row("windows beyond the positions", USAGE, "seq_len = 100.*64", ("--data.seq_len=100",)),
]


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)
def test_a_wrong_setting_is_refused(row, train, settings, capsys, tmp_path):
    if row.change is not None:
        (*path, key), value = row.change[0].split("."), row.change[1]
        place = settings
        for part in path:
            place = place[part]
        place[key] = value
    run = train("run", *row.words)
    message = capsys.readouterr().err
    assert run.code == row.code
    assert re.search(row.message, message.replace("\n", " ")), message
    assert "Traceback" not in message
    assert not (run.run_dir / "metrics.jsonl").exists()


def test_debug_shows_the_traceback(train, capsys):
    assert train("run", "--trainer.max_steps=-1", "--debug").code == USAGE
    assert "Traceback" in capsys.readouterr().err


def test_a_run_dir_that_is_a_file_is_refused(train, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    assert train().code == USAGE
    assert re.search(r"run_dir .*run cannot be used", capsys.readouterr().err)


STRUCTURAL = {"hidden_size": 64, "num_hidden_layers": 4, "moe_experts": 16, "moe_topk": 2, "moe_groups": 1,
              "moe_heads": 1, "moe_dim": 8, "moe_decompose": "horizontal", "vocab_size": 301, "rms_norm_eps": 1e-5,
              "tie_word_embeddings": False, "num_key_value_heads": 1}  # fmt: skip


def test_structural_changes_at_resume_are_refused_with_both_values(train, capsys):
    train("run", "--trainer.max_steps=4")
    for key, value in STRUCTURAL.items():
        assert train("run", f"--model.shape.{key}={value}").code == USAGE
        message = capsys.readouterr().err
        old = {"rms_norm_eps": 1e-6, "num_key_value_heads": 2, **SHAPE}[key]
        assert f"{key}: checkpoint {old!r}, now {value!r}" in message


@pytest.mark.parametrize(("change", "words"), [
    ("--data.batch_size=3", r"batch_size x processes x .* = 3 x 1 x 2 differs from the run.s 2 x 1 x 2"),
    ("--data.seq_len=16", "seq_len 16.*run's 32"),
    ("--data.seed=5", "seed 5.*run's 0"),
])  # fmt: skip
def test_changes_that_lose_the_place_in_the_data_are_refused(train, capsys, change, words):
    """Nothing in the run changes, including its log after the last checkpoint."""
    run = train("run", "--trainer.max_steps=4")
    with open(run.run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 5}\n')
    names = ("metrics.jsonl", "starts.jsonl", "config.yaml")
    before = [(run.run_dir / name).read_bytes() for name in names]
    assert train("run", change).code == USAGE
    assert re.search(words, capsys.readouterr().err)
    assert [(run.run_dir / name).read_bytes() for name in names] == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A run of four steps, made once."""
    import yaml

    from monet.training.cli import main

    root = tmp_path_factory.mktemp("finished")
    content = {
        "cpu_threads": 1, "loggers": [], "model": {"shape": SHAPE},
        "data": {"data_dir": str(data_dir), "seq_len": 16, "batch_size": 2},
        "trainer": {"max_steps": 4, "accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        assert main(["fit", "--config", str(root / "config.yaml"), "--run_dir", str(root / "run")]) == 0
    return root / "run"


def damaged(run: Path, tmp_path: Path, name: str, content: bytes, *, repair_manifest: bool = False) -> Path:
    """A copy of the run with changed content in one file of its checkpoint."""
    import shutil

    from monet.files import write_manifest

    copy = shutil.copytree(run, tmp_path / "damaged")
    folder = copy / "checkpoints" / "step-00000004"
    (folder / name).write_bytes(content)
    if repair_manifest:
        write_manifest(folder)
    return folder


@pytest.mark.parametrize(("name", "content", "repair", "message"), [
    ("model.safetensors", b"short", False, r"model\.safetensors: 5 bytes where the manifest says"),
    ("model.safetensors", b"not safetensors at all", True, r"model\.safetensors: cannot be read"),
    (CONFIG, b"[]", True, r"config\.json: holds a list"),
    (CONFIG, b'{"model_type": "monet"}', True, "hidden_size is missing"),
    (STATE, b"{", True, r"state\.json: no JSON"),
])  # fmt: skip
def test_export_refuses_a_damaged_checkpoint(finished, tmp_path, capsys, name, content, repair, message):
    folder = damaged(finished, tmp_path, name, content, repair_manifest=repair)
    code = monet(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "out")])
    assert code in (USAGE, CHECKPOINT)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "code", "message"), [
    (["export", "--out", "OUT"], USAGE, "run = None, checkpoint = None"),
    (["export", "--out", "OUT", "--run", "RUN", "--checkpoint", "RUN"], USAGE, "give either run or checkpoint"),
    (["export", "--out", "OUT", "--run", "nowhere"], CHECKPOINT, "nowhere has no valid checkpoint"),
    (["export", "--out", "OUT", "--checkpoint", "RUN"], CHECKPOINT, "step-00000000"),
    (["export", "--out", "RUN", "--run", "RUN"], USAGE, "exists already"),
    (["export", "--out", "OUT", "--run", "RUN", "--tokenizer", "nowhere"], CHECKPOINT, "nowhere: no tokenizer.json"),
    (["generate", "--model", "nowhere", "--prompt", "x"], CHECKPOINT, "nowhere: no config.json"),
    (["generate", "--model", "RUN", "--prompt", ""], USAGE, "prompt is empty"),
    (["generate", "--model", "RUN", "--prompt", "x", "--top_p", "1.5"], USAGE, r"top_p.*1\.5"),
    (["generate", "--model", "RUN", "--prompt", "x", "--temperature", "-1"], USAGE, r"temperature.*-1"),
    (["generate", "--model", "RUN", "--prompt", "x", "--max_new_tokens", "0"], USAGE, "max_new_tokens.*0"),
])  # fmt: skip
def test_a_wrong_word_to_export_or_generate_is_refused(finished, tmp_path, capsys, words, code, message):
    places = {"OUT": str(tmp_path / "out"), "RUN": str(finished)}
    assert monet([places.get(word, word) for word in words]) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_named(finished, tmp_path, capsys):
    from safetensors.torch import load_file, save

    weights = load_file(finished / "checkpoints" / "step-00000004" / "model.safetensors")
    name = "model.layers.0.router.w1.weight"
    changes = {
        "lacks 1 weights": {key: tensor for key, tensor in weights.items() if key != name},
        "1 weights that the model does not have: extra": {**weights, "extra": weights[name].clone()},
        r"router\.w1\.weight: \(2, 2\).* for \(16, 32\)": {**weights, name: weights[name][:2, :2].clone()},
        r"router\.w1\.weight.*float16.*float32": {**weights, name: weights[name].half()},
    }
    for number, (message, changed) in enumerate(changes.items()):
        folder = damaged(finished, tmp_path / str(number), "model.safetensors", save(changed), repair_manifest=True)
        assert monet(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "out")]) == CHECKPOINT
        assert re.search(message, capsys.readouterr().err)


def test_a_state_that_names_code_runs_nothing(finished, tmp_path, capsys):
    folder = finished / "checkpoints" / "step-00000004"
    stored = json.loads((folder / STATE).read_text())
    stored["state"]["monet"] = {"$": "builtins.exec", "value": "open('canary', 'w')"}
    bad = damaged(finished, tmp_path, STATE, json.dumps(stored).encode(), repair_manifest=True)
    assert monet(["export", "--checkpoint", str(bad), "--out", str(tmp_path / "out")]) == CHECKPOINT
    assert "unknown kind of value" in capsys.readouterr().err
