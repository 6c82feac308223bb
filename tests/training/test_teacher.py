"""Runs with a teacher: the loss, what is trained, what continues, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monet import MonetForCausalLM
from monet.convert.export import export
from monet.json_text import read_json
from monet.training.cli import main
from monet.training.teacher import Teacher, TeacherSettings
from tests.tolerances import assert_close
from tests.training.runs import losses, read_log
from tests.training.teachers import HYBRID, dense, hybrid_of, learning_hybrid
from tests.training.test_runs import Crash, crash_after  # noqa: F401

NEW = (".router.", ".moe.")
KINDS = ("llama", "mistral", "qwen2")


@pytest.fixture
def settings(settings, tmp_path, data_dir):
    """A hybrid that learns from the LLaMA whose layers it has."""
    settings["model"] |= learning_hybrid(tmp_path)
    return settings


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_only_routers_and_experts_learn_and_the_divergence_falls(train, settings, tmp_path):
    settings["trainer"]["max_steps"] = 24
    run = train("run", "--loggers=[tensorboard]")
    assert run.code == 0
    log = read_log(run.run_dir)
    assert log[-1]["kl"] < 0.8 * log[0]["kl"]
    assert all("uniformity_loss" in entry and entry["lm_loss"] > 0 for entry in log)
    (entry, *_) = read_log(run.run_dir, "validation.jsonl")
    assert set(entry["kl_by_domain"]) == {"animals", "code"} and entry["kl"] > 0
    events = EventAccumulator(str(run.run_dir / "logs" / "tensorboard")).Reload()
    logged = {name: events.Scalars(f"validation/{name}")[0].value for name in ("kl", "kl/animals")}
    assert logged == {"kl": pytest.approx(entry["kl"]), "kl/animals": pytest.approx(entry["kl_by_domain"]["animals"])}
    before, after = weights(tmp_path / "hybrid"), weights(run.checkpoints / "step-00000024")
    for name, tensor in after.items():
        changes = any(part in name for part in NEW)
        assert torch.equal(tensor, before[name]) != changes or "num_batches" in name, name
    export(tmp_path / "export", run=run.run_dir)
    assert MonetForCausalLM.from_pretrained(tmp_path / "export").config.dense_layers == [0, 2]


def test_validating_a_checkpoint_gives_the_runs_own_divergence(train, tmp_path, data_dir, capsys):
    run, out = train(), tmp_path / "out.json"
    words = ["validate", "--run", str(run.run_dir), "--data", str(data_dir), "--json", str(out)]
    words += ["--checkpoint", str(run.checkpoints / "step-00000008")]
    capsys.readouterr()
    assert main(words) == 0
    (entry,) = read_log(run.run_dir, "validation.jsonl")
    found = read_json(out)
    assert entry["kl"] > 0 and {key: found[key] for key in entry} == entry
    assert f"KL from the teacher {entry['kl']:.3f}" in capsys.readouterr().out
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert main(words) == 4
    assert "no such folder" in capsys.readouterr().err
    assert main([*words, f"--teacher={tmp_path / 'moved'}"]) == 0
    assert read_json(out)["kl"] == entry["kl"]
    assert main([*words, "--teacher=none"]) == 0
    assert "kl" not in read_json(out)
    dense(seed=9).save_pretrained(tmp_path / "other")
    capsys.readouterr()
    assert main([*words, f"--teacher={tmp_path / 'other'}"]) == 2
    assert "was trained with the teacher" in " ".join(capsys.readouterr().err.split())


def test_a_crashed_run_continues_bit_for_bit(train, crash_after):  # noqa: F811
    whole = train("whole")
    disarm = crash_after(6)
    with pytest.raises(Crash):
        train("crashed")
    disarm()
    run = train("crashed")
    assert losses(run.run_dir) == losses(whole.run_dir)
    for name in ("model.safetensors", "trainer.safetensors"):
        last = "step-00000012"
        assert (run.checkpoints / last / name).read_bytes() == (whole.checkpoints / last / name).read_bytes()
    names = set(load_file(run.checkpoints / last / "trainer.safetensors"))
    assert not any("self_attn" in name or ".mlp." in name for name in names), "frozen weights have no moments"


def test_the_loss_is_that_of_the_formula(settings, tmp_path):
    """One batch by hand: a share of the divergence, a share of the next-token loss, and nothing else."""
    teacher = Teacher(TeacherSettings(str(tmp_path / "teacher"), 2.0, 0.75), torch.device("cpu"))
    student = MonetForCausalLM.from_pretrained(tmp_path / "hybrid")
    ids = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids[:, :-1], "position_ids": None, "shift_labels": ids[:, 1:], "router_loss": None}
    loss, kl, out = teacher.loss(student, given)
    with torch.no_grad():
        log_p = (dense()(ids[:, :-1]).logits / 2).log_softmax(-1)
        log_q = (out.logits / 2).log_softmax(-1)
    wanted = 4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert_close("divergence", kl, wanted)
    assert_close("loss", loss, 0.75 * wanted + 0.25 * out.lm_loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("documents", [False, True])
def test_shared_lower_layers_change_nothing(kind, documents, tmp_path):
    model = dense(kind)
    model.save_pretrained(tmp_path)
    teacher = Teacher(TeacherSettings(str(tmp_path)), torch.device("cpu"))
    assert type(teacher.model) is type(model)
    hybrid = hybrid_of(model) if kind != "qwen2" else hybrid_of(dense())
    student = hybrid.eval().requires_grad_(False)
    ids = torch.randint(3, 300, (2, 16), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(16).expand(2, -1)
    if documents:
        positions = torch.cat([torch.arange(5), torch.arange(11)]).expand(2, -1)
    whole = teacher.states(ids, positions, {})
    assert_close("logits", whole @ teacher.head.T, model(ids, position_ids=positions, use_cache=False).logits)
    shared = teacher.share_lower_layers(student)
    assert shared == (0 if kind == "qwen2" else 1), "qwen2 has biases that this student lacks"
    with teacher.watching(student) as seen, torch.no_grad():
        student(ids, position_ids=positions, use_cache=False)
    assert bool(seen) == (kind != "qwen2")
    assert_close("states", teacher.states(ids, positions, seen), whole)


def test_layers_that_differ_or_learn_are_not_shared(tmp_path):
    model = dense()
    model.save_pretrained(tmp_path)
    teacher = Teacher(TeacherSettings(str(tmp_path)), torch.device("cpu"))
    assert teacher.share_lower_layers(hybrid_of(model)) == 0, "it learns"
    wider = hybrid_of(model).requires_grad_(False)
    wider.config.rms_norm_eps = 1e-5
    assert teacher.share_lower_layers(wider) == 0, "it computes other norms"
    other = hybrid_of(model).requires_grad_(False)
    other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert teacher.share_lower_layers(other) == 0, "it differs"
    assert teacher.share_lower_layers(hybrid_of(model).requires_grad_(False)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"model": "nowhere"}}, "model.teacher.model = nowhere: no such folder"),
        ({"teacher": {"model": "TEACHER", "temperature": 0}}, "model.teacher.temperature = 0"),
        ({"teacher": {"model": "TEACHER", "weight": 1.5}}, "model.teacher.weight = 1.5: must be from 0 to 1"),
        ({"init_from": None}, "model.freeze_dense = True: random weights would stay random"),
    ],
)
def test_bad_settings_are_refused(train, settings, tmp_path, capsys, change, message):
    if (given := change.get("teacher")) is not None:
        given["model"] = given["model"].replace("TEACHER", str(tmp_path / "teacher"))
    settings["model"] |= change
    assert train().code != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_another_vocabulary_is_refused(train, settings, tmp_path, capsys):
    settings["model"]["shape"] = {**HYBRID, "vocab_size": 320}
    settings["model"]["init_from"] = str(tmp_path / "hybrid")
    assert train().code != 0
    assert "has 300 tokens, the student 320" in " ".join(capsys.readouterr().err.split())


def test_another_teacher_does_not_continue_a_run(train, settings, tmp_path, capsys):
    assert train("run").code == 0
    settings["trainer"]["max_steps"] = 16
    dense(seed=9).save_pretrained(tmp_path / "teacher")
    assert train("run").code != 0
    assert "was trained with the teacher" in " ".join(capsys.readouterr().err.split())
