"""`monet plan`: what it says agrees with the model, adds up, and points at a way that fits."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from monet.cli import main
from monet.flops import parameter_counts, training_flops_per_token
from monet.hardware import ACCELERATORS
from monet.plan import Assumptions, all_choices, best, communicated_bytes, configured, read_run
from monet.training.configs import read_training_config
from monet.training.language_models import class_of
from monet.training.settings import ModelShape

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPE = CONFIGS / "pretrain" / "recipe.yaml"
SIZES = sorted(path for path in (CONFIGS / "pretrain").glob("*.yaml") if path != RECIPE)
# parameters in millions: the paper's, and of its twins what LLaMA's rule for the width of MLPs gives
MILLIONS = {"monet_850m": 853.5, "monet_1.4b": 1465.2, "monet_4.1b": 4173.4,
            "llama_770m": 777.9, "llama_1.3b": 1345.4, "llama_3.8b": 3820.7}  # fmt: skip


def given(gpus: int = 8, **changes) -> Assumptions:
    return Assumptions(**{"gpu": ACCELERATORS["h100"], "gpus": gpus, "gpus_per_node": 8, "mfu": 0.4,
                          "network_bandwidth": 50e9, **changes})  # fmt: skip


def run_of(name: str):
    return read_run([RECIPE, CONFIGS / "pretrain" / f"{name}.yaml"])


def test_there_is_a_configuration_of_every_size_and_form():
    names = {path.stem for path in SIZES}
    assert names == {f"monet_{size}_{form}" for size in ("850m", "1.4b", "4.1b") for form in ("hd", "vd")} | {
        "llama_770m", "llama_1.3b", "llama_3.8b"
    }  # fmt: skip


@pytest.mark.parametrize("path", SIZES, ids=lambda path: path.stem)
def test_each_parses_builds_and_is_the_papers_recipe(path):
    settings = read_training_config([RECIPE, path])
    config = ModelShape(**settings.model.shape.as_dict()).config()
    with torch.device("meta"):
        model = class_of(config)(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[path.stem.removesuffix("_hd").removesuffix("_vd")], abs=0.1)
    assert count == sum(parameter_counts(config).values())
    trainer, data, loss = settings.trainer, settings.data, settings.model.router_loss
    tokens = data.seq_len * data.batch_size * trainer.accumulate_grad_batches * trainer.devices * trainer.num_nodes
    assert tokens == 2**21 and trainer.max_steps * tokens == pytest.approx(100e9, rel=1e-4)
    assert trainer.val_check_interval == 1000 * trainer.accumulate_grad_batches
    assert settings.model.optimizer.learning_rate == 5e-4 and trainer.precision == "bf16-mixed"
    assert (loss.uniformity_weight, loss.ambiguity_weight, loss.uniformity_on) == (1e-3, 1e-3, "routing")
    assert settings.data.prepare_config and Path(CONFIGS.parent / settings.data.prepare_config).is_file()
    if "_hd" in path.stem or "_vd" in path.stem:
        assert config.moe_decompose == {"hd": "horizontal", "vd": "vertical"}[path.stem[-2:]]


@pytest.mark.parametrize("path", SIZES, ids=lambda path: path.stem)
def test_each_fits_the_machine_it_is_written_for(path):
    run = read_run([RECIPE, path])
    found = configured(run, given(8))
    assert found is not None and found.fits and found.total_bytes < 72 * 2**30


def test_both_forms_of_a_size_differ_in_the_form_alone():
    for size in ("850m", "1.4b", "4.1b"):
        horizontal, vertical = (
            yaml.safe_load((CONFIGS / "pretrain" / f"monet_{size}_{form}.yaml").read_text()) for form in ("hd", "vd")
        )
        horizontal["model"]["shape"]["moe_decompose"] = "vertical"
        assert horizontal == vertical


def test_a_plan_is_printed_and_written(tmp_path, capsys):
    words = f"plan --config {RECIPE} --config={CONFIGS / 'pretrain' / 'monet_1.4b_vd.yaml'} --gpus 64 --gpu h100"
    assert main([*words.split(), "--json", str(tmp_path / "plan.json")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "monet_1.4b_vd on 64 H100 SXM: an estimate, nothing was measured" in text
    assert "1,465,157,632" in text and "2,097,152 tokens" in text and "zero3" in text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert sum(plan["model"]["parameters"].values()) == 1465157632
    assert plan["run"]["tokens"] == pytest.approx(100e9, rel=1e-4) and plan["assumptions"]["is_measured"] is False
    now = plan["configured"]
    assert now["total_bytes"] == pytest.approx(sum(now["memory"].values()))
    assert now["gpu_hours"] == pytest.approx(now["days"] * 24 * 64)
    assert now["days"] == pytest.approx(plan["run"]["steps"] * now["step_seconds"] / 86400)


def test_time_without_communication_is_operations_over_rate():
    run = run_of("llama_1.3b")
    found = configured(run, given(1))
    flops = run.tokens * training_flops_per_token(run.config, 2048)
    assert found.step_seconds == found.compute_seconds == pytest.approx(flops / (0.4 * 989e12))
    assert found.communication_seconds == 0
    # recomputing costs a forward of the layers more
    again = [c for c in all_choices(run, given(1)) if c.checkpointing and c.micro_batch == run.micro_batch]
    assert 1.30 < again[0].compute_seconds / found.compute_seconds < 1.34


def test_memory_falls_with_every_stage_and_time_with_every_gpu():
    run = run_of("monet_4.1b_hd")
    for gpus in (8, 64):
        state = {}
        for c in all_choices(run, given(gpus)):
            state[c.stage] = sum(c.memory[part] for part in ("weights", "gradients", "optimiser"))
        assert state[0] > state[1] > state[2] > state[3]
        assert state[3] == pytest.approx(18 * 4173401088 / gpus)
    steps = [best(all_choices(run, given(gpus))).step_seconds for gpus in (8, 16, 64, 512)]
    assert steps == sorted(steps, reverse=True)


def test_volumes_of_the_stages():
    config = run_of("monet_1.4b_vd").config
    total = 1465157632 * 63 / 64
    volume = {stage: communicated_bytes(config, "bf16-mixed", stage, 64, 4) for stage in range(4)}
    assert volume[0] == {"gradients": pytest.approx(2 * 4 * total), "weights": 0}
    assert volume[1] == {"gradients": pytest.approx(2 * 4 * total), "weights": pytest.approx(2 * total)}
    assert volume[2]["gradients"] == pytest.approx(4 * 2 * 4 * total)
    assert volume[3] == {"gradients": pytest.approx(4 * 4 * total), "weights": pytest.approx(4 * 4 * total)}
    assert sum(communicated_bytes(config, "bf16-mixed", 0, 1, 4).values()) == 0


def test_what_does_not_fit_comes_with_words_that_do(tmp_path, capsys):
    big = f"plan --config {RECIPE} --config {CONFIGS / 'pretrain' / 'monet_4.1b_vd.yaml'}"
    assert main(f"{big} --gpus 512".split()) == 0  # two windows a GPU, four are configured
    text = " ".join(capsys.readouterr().out.split())
    assert "instead: --trainer.strategy" in text and "--data.batch_size 2 --trainer.accumulate_grad_batches 1" in text
    assert main([*f"{big} --gpus 8 --gpu rtx4090 --json".split(), str(tmp_path / "small.json")]) == 0
    plan = json.loads((tmp_path / "small.json").read_text())
    assert plan["configured"]["fits"] is False and plan["best"]["fits"] and "zero" in plan["best"]["strategy"]
    assert main([*f"{big} --gpus 1 --gpu rtx4090 --json".split(), str(tmp_path / "one.json")]) == 0
    plan = json.loads((tmp_path / "one.json").read_text())
    assert plan["best"] is None and any("more GPUs" in line for line in plan["remedies"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpus 7", "1024 windows .* cannot be dealt"),
        ("--gpus 0", "gpus = 0: must be positive"),
        ("--gpu tpu", "known are a100"),
        ("--mfu 40", "at most 1"),
        ("--config absent.yaml", "absent.yaml: no such file"),
    ],
)
def test_impossible_plans_are_refused(words, message, capsys):
    base = f"plan --config {RECIPE} --config {CONFIGS / 'pretrain' / 'llama_770m.yaml'} {words}"
    assert main(base.split()) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_configuration_that_training_refuses_is_refused(tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("model: {shape: {hiden_size: 64}}")
    assert main(["plan", "--config", str(RECIPE), "--config", str(tmp_path / "wrong.yaml")]) == 2
    assert "hiden_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("strategy", "stage", "offload"),
    [("ddp", 0, False), ("zero2", 2, False), ("zero3_offload", 3, True), ("fsdp2", 3, False),
     ({"class_path": "monet.training.strategies.Zero", "init_args": {"stage": 3, "offload_optimizer": True}}, 3, True),
     ({"class_path": "monet.training.strategies.DataParallel"}, 0, False)],
    ids=str,
)  # fmt: skip
def test_strategies_are_read_as_training_reads_them(tmp_path, strategy, stage, offload):
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    run = read_run([RECIPE, CONFIGS / "pretrain" / "monet_1.4b_vd.yaml", tmp_path / "more.yaml"])
    assert (run.stage, run.offload) == (stage, offload)
    found = configured(run, given(8))
    assert (found.memory["optimiser"] == 0) == offload
