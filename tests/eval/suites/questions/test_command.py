"""lm-evaluation-harness's own command line knows the model `monet`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from monet.cli import main
from monet.errors import CheckpointError, ConfigError
from monet.eval.choices.scoring import tokenizer_of
from monet.eval.core.conditions import Condition
from monet.eval.suites.questions.command import PLUGIN
from monet.eval.suites.questions.model import MonetLM
from monet.eval.suites.questions.scoring import Scorer, correct
from monet.eval.suites.questions.sources import quiet_harness
from monet.eval.suites.questions.tasks import load_tasks
from monet.extras import install_command
from monet.masks.expert_mask import ExpertMask
from tests.eval.suites.questions.test_golden import spec_of
from tests.marks import nightly

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def task_file(data, tmp_path) -> Path:
    """The harness's PIQA under another name, on the local rows, in the form of a user's own task file."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_rows.py").write_text(
        textwrap.dedent(f"""
            import datasets

            def rows(**_):
                rows = datasets.load_from_disk({str(data / "piqa" / "plain_text" / "validation")!r})
                return datasets.DatasetDict({{"validation": rows}})
        """)
    )
    path = tmp_path / "tasks" / "local_piqa.yaml"
    path.write_text(
        textwrap.dedent("""
            task: local_piqa
            custom_dataset: !function local_rows.rows
            output_type: multiple_choice
            validation_split: validation
            doc_to_text: "Question: {{goal}}\\nAnswer:"
            doc_to_target: label
            doc_to_choice: "{{[sol1, sol2]}}"
            metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},
                          {metric: acc_norm, aggregation: mean, higher_is_better: true}]
        """)
    )
    return path


def run(words, tmp_path) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [*words, "--output_path", str(tmp_path / "results.json")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("results*.json")
    content = json.loads(path.read_text())
    path.unlink()
    return content


@pytest.mark.parametrize("way", ["its own command", nightly("our verb")])
@pytest.mark.slow
def test_the_harness_runs_a_masked_model(way, model_folder, model, mask, data, task_file, tmp_path):
    mask.save(tmp_path / "mask.safetensors")
    tasks = str(task_file)
    if way == "its own command":
        start = [sys.executable, "-m", "lm_eval"]
        tasks += f",{PLUGIN}"
    else:
        start = [sys.executable, "-m", "monet", "lm-eval", "run"]
    arguments = f"pretrained={model_folder},mask={tmp_path / 'mask.safetensors'}"
    words = ["--model", "monet", "--model_args", arguments, "--tasks", tasks, "--device", "cpu", "--batch_size", "4"]
    found = run([*start, *words], tmp_path)
    (task,), _ = load_tasks([spec_of("piqa", "cloze")], 0, data=data)
    scorer = Scorer(model, tokenizer_of(model, None), tmp_path / "kept", batch_size=4)
    outcomes = scorer.outcomes(task.questions, Condition("mask", mask))
    result = found["results"]["local_piqa"]
    assert result["acc,none"] == correct(task.questions, outcomes, False).mean()
    assert result["acc_norm,none"] == correct(task.questions, outcomes, True).mean()
    assert found["config"]["model"] == "monet" and found["config"]["experts_masked"] == 24
    assert re.fullmatch("[0-9a-f]{64}", found["config"]["expert_mask"])


def test_the_verb_shows_the_way(capsys):
    assert main(["lm-eval", "--plugin"]) == 0
    assert Path(capsys.readouterr().out.strip()) == PLUGIN and PLUGIN.is_file()
    assert main(["lm-eval", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: monet lm-eval" in shown and "usage: lm-eval" in shown


def test_the_entry_point_names_the_class():
    """Versions of the harness that look for entry points find the model there."""
    import importlib

    declared = re.search(
        r'\[project\.entry-points\."lm_eval\.models"\]\nmonet = "(.*):(.*)"', (ROOT / "pyproject.toml").read_text()
    )
    module, name = declared.groups()
    assert getattr(importlib.import_module(module), name) is MonetLM


def test_arguments_that_make_no_sense(model_folder, model, mask, tmp_path):
    with pytest.raises(ConfigError, match="keep and control need a mask; give mask=FILE"):
        MonetLM(pretrained=str(model_folder), keep=0.5, device="cpu")
    mask.save(tmp_path / "mask.safetensors")
    with pytest.raises(ConfigError, match=r"control_kind=mass needs the experts' statistics; give statistics=FILE"):
        MonetLM(pretrained=str(model_folder), mask=mask, control=0, control_kind="mass", device="cpu")
    with pytest.raises(ConfigError, match=r"keep 1\.5 must be a number from 0"):
        MonetLM(pretrained=str(model_folder), mask=str(tmp_path / "mask.safetensors"), keep=1.5, device="cpu")
    with pytest.raises(CheckpointError, match="no readable mask"):
        MonetLM(pretrained=str(model_folder), mask=str(tmp_path / "nothing"), device="cpu")
    ExpertMask(mask.keep_REE, fingerprint="another").save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="made for another model"):
        MonetLM(pretrained=str(model_folder), mask=str(tmp_path / "other.safetensors"), device="cpu")


def test_a_model_of_another_kind_is_refused(model_folder, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=340, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="LlamaForCausalLM, and --model monet runs only Monet models"):
        MonetLM(pretrained=str(tmp_path), device="cpu")


def test_a_mask_in_the_folder_and_one_given_hold_together(model_folder, model, mask, tmp_path):
    stored = ExpertMask.random(model.config, [4, 4], seed=9, fingerprint=model.fingerprint())
    model.set_expert_mask(stored)
    model.save_pretrained(tmp_path / "masked")
    tokenizer_of(model, str(model_folder)).save_pretrained(tmp_path / "masked")
    mask.save(tmp_path / "mask.safetensors")
    lm = MonetLM(pretrained=str(tmp_path / "masked"), mask=str(tmp_path / "mask.safetensors"), device="cpu")
    assert lm.model.expert_mask == (stored & mask)


def test_an_absent_harness_is_installed_by_the_extra(monkeypatch, capsys):
    for name in ("lm_eval", "lm_eval.__main__"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["lm-eval", "ls"]) == 2
    assert install_command("eval") in capsys.readouterr().err
    with pytest.raises(ConfigError, match=re.escape(install_command("eval"))), quiet_harness():
        pass
