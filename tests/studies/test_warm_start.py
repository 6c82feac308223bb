"""Starts of a pretraining compared: tokens to equal loss, refusals, and the whole chain on tiny runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from monet.cli import main as monet
from monet.convert.export import export
from monet.errors import ConfigError, DataError
from monet.training.configs import read_training_config
from monet.training.settings import ModelShape
from studies.removal import page as pages
from studies.warm_start import __main__ as command
from studies.warm_start.curves import arm_of, first_at, levels
from studies.warm_start.results import Point, WarmStartResult
from tests.test_layout import ROOT
from tests.training.conftest import settings, train  # noqa: F401
from tests.training.runs import SHAPE
from tests.training.test_twin import TWIN


def run_of(folder: Path, losses: list[float], **changes) -> Path:
    """A run with a validation every two steps of 50 tokens."""
    folder.mkdir()
    steps = range(1, 2 * len(losses) + 1)
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "tokens_seen": {50 * s}}}\n' for s in steps))
    lines = [json.dumps({"step": 2 * place + 2, "loss": loss}) for place, loss in enumerate(losses)]
    (folder / "validation.jsonl").write_text("".join(f"{line}\n" for line in lines))
    config = {
        "seed_everything": 0, "run_dir": folder.name, "model": {"shape": {"hidden_size": 8}, "init_from": folder.name},
        "data": {"seed": len(losses), "seq_len": 32}, "trainer": {"max_steps": 9}, **changes,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_curve_is_linear_between_validations():
    curve = [Point(100, 4.0), Point(200, 3.0), Point(300, 3.5), Point(400, 2.0)]
    assert first_at(curve, 3.25) == (175, False)
    assert first_at(curve, 2.75) == (350, False)
    assert first_at(curve, 4.0) == (100, False) and first_at(curve, 4.5) == (100, True)
    assert first_at(curve, 1.9) == (None, False)


def test_levels_are_losses_of_the_first_arm(tmp_path):
    slow = arm_of("random", [run_of(tmp_path / "a", [5, 4, 3, 2])])
    quick = arm_of("pieces", [run_of(tmp_path / "b", [4, 2, 1.5, 1]), run_of(tmp_path / "c", [4, 3, 2.5, 3])])
    assert [point.loss for point in quick.curve] == [4, 2.5, 2, 2] and quick.final == [1, 3]
    found = levels([slow, quick])
    assert [(one.share, one.loss) for one in found] == [(0.25, 5), (0.25, 5), (0.5, 4), (0.75, 3), (1, 2)]
    assert found[2].tokens == {"random": 200, "pieces": 100} and found[2].is_bound == []
    assert found[0].is_bound == ["pieces"]
    assert found[3].tokens["pieces"] == 167 and found[4].tokens["pieces"] == 300


def test_runs_that_differ_in_more_than_their_start_are_refused(tmp_path):
    one = run_of(tmp_path / "a", [5, 4])
    with pytest.raises(ConfigError, match="differ in trainer"):
        command.result_of({"random": [one], "pieces": [run_of(tmp_path / "b", [4, 3], trainer={"max_steps": 8})]}, None)
    with pytest.raises(DataError, match="different tokens"):
        arm_of("random", [one, run_of(tmp_path / "c", [5, 4, 3])])
    with pytest.raises(DataError, match="no validation"):
        arm_of("random", [run_of(tmp_path / "d", [])])
    with pytest.raises(DataError, match="no such file"):
        arm_of("random", [tmp_path / "e"])


def test_the_files_of_settings_give_the_evidence_model():
    configs = ROOT / "configs"
    trained = read_training_config([configs / "evidence.yaml", configs / "evidence_starts.yaml"])
    shape = ModelShape(**trained.model.shape.as_dict())
    start = yaml.safe_load((configs / "convert" / "evidence.yaml").read_text())
    for name in ("moe_decompose", "moe_experts", "moe_dim", "moe_heads", "moe_topk", "moe_groups"):
        assert start[name] == getattr(shape, name), name
    assert (start["seq_len"], start["tokens"], start["distil_tokens"]) == (trained.data.seq_len, 0, 0)


@pytest.mark.slow
def test_the_chain_from_the_twin_to_the_page(train, settings, data_dir, tmp_path, capsys):  # noqa: F811
    settings["trainer"]["val_check_interval"] = 8
    settings["model"]["shape"] = dict(TWIN)
    assert train("twin").code == 0
    export(tmp_path / "twin" / "export", run=tmp_path / "twin")
    words = [
        "convert", "--config", str(ROOT / "configs" / "convert" / "evidence.yaml"), "--model",
        str(tmp_path / "twin" / "export"), "--data", str(data_dir), "--moe_experts=8", "--moe_dim=4", "--moe_heads=2",
        "--moe_topk=3", "--seq_len=32", "--batch_size=2", "--sample_tokens=256", "--report_windows=2", "--device=cpu",
    ]  # fmt: skip
    assert monet([*words, "--out", str(tmp_path / "start-pieces")]) == 0
    assert monet([*words, "--init=random", "--out", str(tmp_path / "start-rest")]) == 0
    settings["model"]["shape"] = {**SHAPE, "attention_dropout": 0.0}
    assert train("random").code == 0
    for name in ("rest", "pieces"):
        assert train(name, f"--model.init_from={tmp_path / f'start-{name}'}").code == 0
    (tmp_path / "pretraining.md").write_text(f"head\n{command.BEGIN}\n{pages.END}\ntail\n")
    arms = [word for name in command.ARMS for word in (f"--{name}", str(tmp_path / name))]
    command.main([*arms, "--twin", str(tmp_path / "twin"), "--out", str(tmp_path / "o"), "--docs", str(tmp_path)])
    result = WarmStartResult.load(tmp_path / "warm-start.json")
    assert [arm.name for arm in result.arms] == ["random", "rest", "pieces"] and result.twin_tokens == 12 * 128
    assert result.arms[2].curve[0].loss < result.arms[0].curve[0].loss
    text = pages.written(tmp_path / "pretraining.md", command.BEGIN)
    assert text == command.body(result).strip() and "saved by pieces" in text and "1,536 tokens" in text


def test_the_page_shows_what_the_file_of_results_holds():
    docs = ROOT / "docs"
    if (docs / "warm-start.json").is_file():
        result = WarmStartResult.load(docs / "warm-start.json")
        assert pages.written(docs / "pretraining.md", command.BEGIN) == command.body(result).strip()
