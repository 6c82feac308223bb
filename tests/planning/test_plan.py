"""The numbers of `monet plan` agree with the model and add up, and its remedies fit the GPUs."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import scaling_tables
from monet.cli import main
from monet.costs.communication import latency_seconds, sent_bytes, starting_seconds, waiting_seconds
from monet.costs.flops import forward_flops_per_token, parameter_counts, training_flops_per_token
from monet.costs.hardware import ACCELERATORS
from monet.costs.memory import STRATEGIES
from monet.errors import ConfigError
from monet.planning.choices import Assumptions, all_choices, best, choice, configured, words
from monet.planning.plan import read_run
from monet.training.configs import read_training_config
from monet.training.language_models import class_of
from monet.training.settings import ModelShape

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPE = CONFIGS / "pretrain" / "recipe.yaml"
SIZES = sorted(path for path in (CONFIGS / "pretrain").glob("*.yaml") if path != RECIPE)
# parameters in millions: from the paper, and for the LLaMA twins from LLaMA's rule for the width of MLPs
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


def test_a_hybrid_is_planned_with_its_dense_layers(tmp_path, capsys):
    """The plan counts the parameters and operations of the dense layers."""
    changed = tmp_path / "hybrid.yaml"
    changed.write_text("model: {shape: {dense_layers: [0, 1, 2], intermediate_size: 4096}}\n")
    files = [RECIPE, CONFIGS / "pretrain" / "monet_850m_vd.yaml"]
    plain, hybrid = read_run(files), read_run([*files, changed])
    words = [word for file in (*files, changed) for word in ("--config", str(file))]
    assert main(["plan", *words, "--gpus", "8", "--gpu", "h100", "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    with torch.device("meta"):
        model = class_of(hybrid.config)(hybrid.config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sum(plan["model"]["parameters"].values()) == parameters != sum(parameter_counts(plain.config).values())
    flops = hybrid.tokens * training_flops_per_token(hybrid.config, 2048)
    found = configured(hybrid, given(1))
    assert found.compute_seconds == pytest.approx(flops / (0.4 * 989e12))
    assert found.compute_seconds != pytest.approx(configured(plain, given(1)).compute_seconds, rel=1e-3)


def test_a_teacher_and_frozen_weights_are_planned(tmp_path, capsys):
    """Every GPU holds the teacher and runs the layers that the student does not share; frozen weights cost less."""
    shape = ModelShape(**read_training_config([RECIPE, CONFIGS / "pretrain" / "llama_770m.yaml"]).model.shape.as_dict())
    teacher = shape.config()
    teacher.save_pretrained(tmp_path / "teacher")
    dense = list(range(teacher.num_hidden_layers - 4))
    changed = tmp_path / "student.yaml"
    changed.write_text(
        f"model: {{shape: {{dense_layers: {dense}, intermediate_size: 4096}}, init_from: x, freeze_dense: true,"
        f" teacher: {{model: {tmp_path / 'teacher'}, dtype: bfloat16}}}}\n"
    )
    files = [RECIPE, CONFIGS / "pretrain" / "monet_850m_vd.yaml", changed]
    words = [word for file in files for word in ("--config", str(file))]
    assert main(["plan", *words, "--gpus", "8", "--json", str(tmp_path / "plan.json")]) == 0
    text, plan = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    total = sum(parameter_counts(teacher).values())
    assert f"teacher: {total:,} parameters" in text and "the dense weights are frozen" in text
    assert plan["teacher"]["parameters"] == total and plan["teacher"]["weight_bytes"] == 2 * total
    assert plan["configured"]["memory"]["teacher"] == 2 * total
    assert plan["model"]["trained_parameters"] < sum(plan["model"]["parameters"].values())
    parts = forward_flops_per_token(teacher, 2048)
    layers = (sum(parts.values()) - parts["lm_head"]) * 4 / teacher.num_hidden_layers
    run = read_run(files)
    assert run.teacher.forward_flops == pytest.approx(parts["lm_head"] + layers)
    found, alone = configured(run, given(1)), configured(replace(run, teacher=None, freeze_dense=False), given(1))
    assert found.compute_seconds < alone.compute_seconds and found.total_bytes < alone.total_bytes
    changed.write_text(changed.read_text().replace(str(tmp_path / "teacher"), str(tmp_path / "none")))
    assert main(["plan", *words]) == 4
    assert "no such folder" in capsys.readouterr().err


def test_time_without_communication_is_operations_over_rate():
    run = run_of("llama_1.3b")
    found = configured(run, given(1))
    flops = run.tokens * training_flops_per_token(run.config, 2048)
    assert found.compute_seconds == pytest.approx(flops / (0.4 * 989e12))
    assert found.step_seconds == found.compute_seconds + found.update_seconds
    assert found.communication_seconds == 0
    # recomputing costs one more forward of the layers
    again = [c for c in all_choices(run, given(1)) if c.checkpointing and c.micro_batch == run.micro_batch]
    assert 1.30 < again[0].compute_seconds / found.compute_seconds < 1.34


def test_memory_falls_with_every_stage_and_time_with_every_gpu():
    run = run_of("monet_4.1b_hd")
    for gpus in (8, 64):
        state = {}
        for c in all_choices(run, given(gpus)):
            state[c.strategy] = sum(c.memory[part] for part in ("weights", "gradients", "optimiser"))
        assert list(state) == list(STRATEGIES)
        assert state["ddp"] > state["zero1"] > state["zero2"] > state["zero3"] > state["fsdp2"]
        assert state["zero3"] == pytest.approx(18 * 4173401088 / gpus)
        assert state["fsdp2"] == pytest.approx(16 * 4173401088 / gpus)
    steps = [best(all_choices(run, given(gpus))).step_seconds for gpus in (8, 16, 64, 512)]
    assert steps == sorted(steps, reverse=True)


def test_volumes_of_the_strategies():
    config = run_of("monet_1.4b_vd").config
    total = 1465157632 * 63 / 64
    volume = {name: sent_bytes(config, "bf16-mixed", name, 64, 3) for name in STRATEGIES}
    assert volume["ddp"] == (pytest.approx(2 * 4 * total), 0)
    assert volume["zero1"] == (pytest.approx(2 * 4 * total), pytest.approx(2 * total))
    assert volume["zero2"] == (pytest.approx(3 * 2 * 4 * total), pytest.approx(2 * total))
    assert volume["zero3"] == volume["fsdp2"] == (pytest.approx(3 * 4 * total), pytest.approx(3 * 2 * 2 * total))
    assert sum(sent_bytes(config, "bf16-mixed", "ddp", 1, 4)) == 0


def test_a_ring_leaves_a_node_over_all_of_its_network():
    """In nccl-tests all network cards of a node, or its internal links, limit the bus bandwidth between nodes."""
    assert given(8).bandwidth == pytest.approx(0.8 * 450e9)
    assert given(64).bandwidth == pytest.approx(0.8 * 400e9)
    assert given(64, network_bandwidth=25e9).bandwidth == pytest.approx(0.8 * 200e9)
    assert given(64, network_bandwidth=100e9).bandwidth == pytest.approx(0.8 * 450e9)
    assert given(64, gpus_per_node=1).bandwidth == pytest.approx(0.8 * 50e9)


def test_what_hides_behind_the_work_and_what_does_not():
    """Half of what can overlap does. Weights gathered in stages 1 and 2 cannot; DDP gradients can in the last batch."""
    volume = sent_bytes(run_of("monet_1.4b_vd").config, "bf16-mixed", "zero1", 64, 4)
    sending, waiting = waiting_seconds(volume, "zero1", 1e9, 1e6, 4)
    assert sending == pytest.approx(sum(volume) / 1e9)
    assert waiting == pytest.approx((volume.gradients / 2 + volume.weights) / 1e9)
    assert waiting_seconds(volume, "zero3", 1e9, 1e6, 4)[1] == pytest.approx(sending / 2)
    # six seconds of compute, four of which are backward, one of the last micro-batch
    assert waiting_seconds(volume, "zero1", 1e9, 6.0, 4)[1] == pytest.approx(sending - 1)
    assert waiting_seconds(volume, "ddp", 1e9, 6.0, 4)[1] == pytest.approx(sending - 1)
    assert waiting_seconds(volume, "zero2", 1e9, 6.0, 4)[1] == pytest.approx(sending - 4)
    assert waiting_seconds(volume, "fsdp2", 1e9, 6.0, 4)[1] == pytest.approx(sending - 6)


def test_latency_grows_with_ranks_layers_and_micro_batches():
    monet, llama = run_of("monet_1.4b_vd").config, run_of("llama_1.3b").config
    # rings for each router's statistics; trees for losses, the step's metrics and, twice, the norms of three groups
    monet_ring, monet_tree = 6 * 2 + 7 + 3, 2 + 1 + 6
    assert latency_seconds(monet, "zero1", 8, 2) == pytest.approx(2e-6 * 7 * monet_ring + 20e-6 * 3 * monet_tree)
    assert latency_seconds(monet, "ddp", 512, 1) == pytest.approx(2e-6 * 511 * 6 + 20e-6 * 9 * 2)
    assert latency_seconds(llama, "ddp", 512, 4) == pytest.approx(20e-6 * 9)
    assert latency_seconds(llama, "zero3", 9, 2) == pytest.approx(2e-6 * 8 * 144 + 20e-6 * math.log2(9) * 5)
    assert latency_seconds(monet, "fsdp2", 1, 1) == 0
    # buckets of gradients, of 25 MiB and of 200 million
    assert starting_seconds(monet, "bf16-mixed", "ddp", 512, 4) == pytest.approx(20e-6 * 9 * 224)
    assert starting_seconds(monet, "bf16-mixed", "zero1", 512, 4) == pytest.approx(20e-6 * 9 * 8)
    assert starting_seconds(monet, "bf16-mixed", "zero2", 512, 4) == pytest.approx(20e-6 * 9 * 30)
    assert starting_seconds(monet, "bf16-mixed", "zero3", 512, 4) == 0
    volume = sent_bytes(monet, "bf16-mixed", "ddp", 512, 1)
    plain, more = (waiting_seconds(volume, "ddp", 1e9, 1e6, 1, seconds) for seconds in (0.0, 2.0))
    assert (more[0] - plain[0], more[1] - plain[1]) == pytest.approx((2.0, 1.0))


def test_the_update_reads_and_writes_what_the_optimiser_holds():
    run = run_of("llama_1.3b")
    count = sum(parameter_counts(run.config).values())
    rate = ACCELERATORS["h100"].memory_bandwidth
    assert choice(run, given(8), "ddp", 1, False).update_seconds == pytest.approx(40 * count / rate)
    assert choice(run, given(8), "zero1", 1, False).update_seconds == pytest.approx(42 * count / 8 / rate)


def test_zero_on_one_gpu_is_not_taken_for_ddp():
    run = replace(run_of("monet_850m_vd"), strategy="zero2", offload=True, micro_batch=1)
    found = configured(run, given(1))
    assert (found.name, found.memory["optimiser"], found.memory["copies"]) == ("zero2_offload", 0, 0)
    assert found.memory["weights"] == 2 * sum(parameter_counts(run.config).values())


def test_words_make_the_configuration_fit_the_gpus():
    """The words state settings that differ from the configuration, and the validation interval, counted in batches."""
    run = run_of("monet_1.4b_vd")
    assert words(run, given(8), configured(run, given(8))) == ""
    assert words(run, given(64), configured(run, given(64))) == (
        "--trainer.num_nodes 8 --trainer.accumulate_grad_batches 2 --trainer.val_check_interval 2000"
    )
    other = choice(run, given(4), "zero3", 16, True, offload=True)
    assert words(run, given(4), other) == (
        "--trainer.devices 4 --trainer.strategy zero3_offload --data.batch_size 16 --model.gradient_checkpointing true"
    )


def test_what_does_not_fit_comes_with_words_that_do(tmp_path, capsys):
    big = f"plan --config {RECIPE} --config {CONFIGS / 'pretrain' / 'monet_4.1b_vd.yaml'}"
    assert main(f"{big} --gpus 512".split()) == 0  # two windows a GPU, four are configured
    text = " ".join(capsys.readouterr().out.split())
    assert "a micro-batch of 4 windows does not divide the 2 windows of a GPU; instead: --trainer.num_nodes 64" in text
    assert "--data.batch_size 2 --trainer.accumulate_grad_batches 1 --trainer.val_check_interval 1000" in text
    assert main([*f"{big} --gpus 8 --gpu rtx4090 --json".split(), str(tmp_path / "small.json")]) == 0
    plan = json.loads((tmp_path / "small.json").read_text())
    assert plan["configured"]["fits"] is False and plan["best"]["fits"] and "zero" in plan["best"]["strategy"]
    assert main([*f"{big} --gpus 1 --gpu rtx4090 --json".split(), str(tmp_path / "one.json")]) == 0
    plan = json.loads((tmp_path / "one.json").read_text())
    assert plan["best"] is None and ["more GPUs" in line for line in plan["remedies"]] == [False, True]
    assert "zero3_offload" in plan["remedies"][0] and "GiB of each node's memory" in plan["remedies"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpus 7", "1024 windows .* cannot be divided evenly"),
        ("--gpus 0", "gpus = 0: must be positive"),
        ("--gpu tpu", "must be one of a100"),
        ("--mfu 40", "at most 1"),
        ("--mfu 0", "mfu = 0.0: must be positive"),
        ("--tokens 0", "tokens = 0.0: must be positive"),
        ("--tokens=-1", "tokens = -1.0: must be positive"),
        ("--gpus 12", "must be a multiple of gpus_per_node"),
        ("--config absent.yaml", "absent.yaml: no such file"),
    ],
)
def test_impossible_plans_are_refused(words, message, capsys):
    base = f"plan --config {RECIPE} --config {CONFIGS / 'pretrain' / 'llama_770m.yaml'} {words}"
    assert main(base.split()) == 2
    assert re.search(message, capsys.readouterr().err)


def test_weights_that_training_does_not_freeze_are_refused(tmp_path, capsys):
    """The plan refuses what train.py refuses: a dense twin has no routers and no experts."""
    changed = tmp_path / "frozen.yaml"
    twin = [RECIPE, CONFIGS / "pretrain" / "llama_770m.yaml", changed]
    words = [word for file in twin for word in ("--config", str(file))]
    for setting, message in [
        ("freeze_dense: true, init_from: x", "freeze_dense = True: llama has no experts"),
        ("freeze_router: true, init_from: x", "freeze_router = True: llama has no router"),
    ]:
        changed.write_text(f"model: {{{setting}}}\n")
        assert main(["plan", *words, "--gpus", "8"]) == 2
        assert message in capsys.readouterr().err


def test_a_configuration_that_training_refuses_is_refused(tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("model: {shape: {hiden_size: 64}}")
    assert main(["plan", "--config", str(RECIPE), "--config", str(tmp_path / "wrong.yaml")]) == 2
    assert "hiden_size" in capsys.readouterr().err
    assert main(["plan", "--config", str(CONFIGS / "pretrain" / "llama_770m.yaml")]) == 2
    assert "required: data.data_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainer": {"max_steps": -1}}, "trainer.max_steps = -1: set the number"),
        ({"trainer": {"accumulate_grad_batches": 0}}, "accumulate_grad_batches = 0"),
        ({"trainer": {"precision": "64-true"}}, "64-true: must be 32-true"),
    ],
)
def test_a_configuration_that_leaves_something_open_is_refused(tmp_path, capsys, content, message):
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    files = [RECIPE, CONFIGS / "pretrain" / "llama_770m.yaml", tmp_path / "more.yaml"]
    assert main(["plan", *(f"--config={file}" for file in files)]) == 2
    assert message in capsys.readouterr().err


def test_all_gpus_are_as_many_as_are_planned_for(tmp_path):
    files = [RECIPE, CONFIGS / "pretrain" / "llama_770m.yaml", tmp_path / "more.yaml"]
    cases = [(-1, 4, 4), ("auto", 16, 16), ("-1", 2, 2), ([0, 1], 8, 2), ("0,1,2", 8, 3), ("4", 8, 4)]
    for devices, gpus, count in cases:
        files[-1].write_text(yaml.safe_dump({"trainer": {"devices": devices}}))
        assert read_run(files, gpus).windows == 16 * 8 * count
    files[-1].write_text(yaml.safe_dump({"trainer": {"devices": "auto"}}))
    with pytest.raises(ConfigError, match="does not fix the batch of a step"):
        read_run(files)


def test_the_page_has_what_the_command_prints():
    page = (CONFIGS.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    for table in scaling_tables.tables():
        assert table in page, f"python -m benchmarks.scaling_tables prints:\n{table}"


def test_every_kind_of_gpu_is_in_the_help(capsys):
    assert main(["plan", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(re.search(rf"[ :]{name}[,.]", text) for name in ACCELERATORS)


@pytest.mark.parametrize(
    ("strategy", "name", "offload"),
    [("ddp", "ddp", False), ("zero2", "zero2", False), ("zero3_offload", "zero3", True), ("fsdp2", "fsdp2", False),
     ({"class_path": "monet.training.strategies.Zero", "init_args": {"stage": 3, "offload_optimizer": True}},
      "zero3", True),
     ({"class_path": "monet.training.strategies.FullyShard"}, "fsdp2", False),
     ({"class_path": "monet.training.strategies.DataParallel"}, "ddp", False)],
    ids=str,
)  # fmt: skip
def test_strategies_are_read_as_training_reads_them(tmp_path, strategy, name, offload):
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": strategy}}))
    run = read_run([RECIPE, CONFIGS / "pretrain" / "monet_1.4b_vd.yaml", tmp_path / "more.yaml"])
    assert (run.strategy, run.offload) == (name, offload)
    found = configured(run, given(8))
    assert (found.memory["optimiser"] == 0) == offload
