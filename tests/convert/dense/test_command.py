"""The command: whole conversions of a tiny model, and what it refuses."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import monet.convert.dense.finish as finish_module
from monet import MonetForCausalLM
from monet.cli import main
from monet.convert.dense.precision import Arithmetic
from monet.convert.dense.report import Report
from monet.convert.dense.stand_in import build_stand_ins
from monet.convert.dense.state import LayerCheckpoints
from monet.convert.dense.stream import MlpStates, StateStream, TextOptions
from monet.model.dense_models import load_dense
from tests.tolerances import assert_close

LAYERS = {"vertical": [2, 3], "horizontal": [2, 3]}


@pytest.fixture
def finished(words, tmp_path):
    """The folder of a finished conversion with these options."""

    def made(**changes):
        assert main(words(**changes)) == 0
        return tmp_path / "run"

    return made


@pytest.mark.parametrize("form", LAYERS)
def test_the_model_computes_what_the_trained_stand_ins_compute(finished, dense, data_dir, form):
    """Layer by layer, on the dense model's states: the same keys, and outputs equal up to rounding."""
    run = finished(moe_decompose=form, layers="top:2", moe_groups=1)
    model = MonetForCausalLM.from_pretrained(run)
    _, state = LayerCheckpoints(run / "layers").newest()
    students = build_stand_ins(model.config, [[layer] for layer in LAYERS[form]])
    stream = StateStream(
        MlpStates(load_dense(str(dense)), LAYERS[form], Arithmetic(torch.device("cpu"), False)),
        TextOptions(seq_len=32, batch_size=2).module(data_dir),
    )
    with closing(stream.batches()) as batches:
        batch = next(batches)
    for layer, student in students.items():
        student.load_state_dict(state["training"]["students"][str(layer)])
        student.eval()
        x_TD, block = batch.states[layer].x_TD, model.model.layers[layer]
        with torch.no_grad():
            expected_TD = student(x_TD)
            routed = block.router.route(x_TD[None])
            out_TD = block.moe(x_TD[None], *routed.gates)[0]
        assert all(torch.equal(one, two) for one, two in zip(routed.gates, student.routed.gates, strict=True))
        assert_close("output", out_TD, expected_TD)


def test_the_result_is_an_ordinary_model_folder(finished, dense):
    run = finished(layers="1,3")
    model = AutoModelForCausalLM.from_pretrained(run)
    assert type(model) is MonetForCausalLM
    assert list(model.config.dense_layers) == [0, 2]
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 7)
    assert main(["generate", f"--model={run}", "--prompt=the cat", "--max_new_tokens=3"]) == 0
    theirs = load_file(dense / "model.safetensors")
    ours = load_file(run / "model.safetensors")
    kept = [name for name in theirs if not name.startswith(("model.layers.1.mlp", "model.layers.3.mlp"))]
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    assert {name.split(".")[3] for name in ours.keys() - set(kept)} == {"moe", "router"}


def test_the_report_has_every_number(finished):
    run = finished(layers="top:2")
    report = Report.load(run)
    assert report.layers == [2, 3] == list(report.fvu) == list(report.fvu_start)
    assert all(0 < report.fvu[layer] < report.fvu_start[layer] < 1 for layer in report.layers)
    assert [domain.name for domain in report.domains] == ["animals", "code"]
    for domain in report.domains:
        assert domain.kl > 0 and domain.loss == domain.loss_local != domain.loss_dense
    assert [group.layer for group in report.groups] == [2, 3]
    assert all(0 < group.pairs <= 64 and group.tokens == 128 for group in report.groups)
    assert {part.name for part in report.parts} == {
        "stage 1: start", "stage 1: measurement", "stage 1: dense model", "stage 1: stand-ins", "stage 1: optimiser",
        "report",
    }  # fmt: skip
    assert report.curve[-1]["tokens"] == report.tokens == 640
    content = json.loads((run / "report.json").read_text())
    assert content["perplexity_converted"] == pytest.approx(report.perplexity_converted)
    assert "cannot load such a model" in (run / "README.md").read_text()


def test_layers_can_share_a_router(finished):
    run = finished(layers="1-3", moe_groups=2)
    model = MonetForCausalLM.from_pretrained(run)
    assert len(model.routers()) == 2
    assert [group.layer for group in Report.load(run).groups] == [1, 3]


def test_no_tokens_keep_the_start(finished):
    report = Report.load(finished(layers="3", tokens=0))
    assert report.fvu == report.fvu_start and report.tokens == 0 and report.curve == []


def test_a_kill_while_the_model_moves_is_repaired(words, tmp_path, monkeypatch):
    """The first file was moved, config.json was not."""

    def move_one(folder, out):
        (folder / "model.safetensors").rename(out / "model.safetensors")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "move_model", move_one)
        assert main(words()) == 130
    assert main(words()) == 0
    MonetForCausalLM.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize(
    "changes, code, text",
    [
        ({"layers": "top:9"}, 2, "from 1 to the model's 4 layers"),
        ({"moe_experts": 64}, 2, "the MLP has 48 neurons"),
        ({"moe_topk": 9}, 2, "moe_topk=9"),
        ({"tokens": -1}, 2, "tokens -1"),
        ({"distil_rate": 0}, 2, "distil_rate 0"),
        ({"seq_len": 500}, 2, "seq_len 500 exceeds the model's longest sequence, 128"),
        ({"data": "nowhere"}, 3, "nowhere"),
        ({"model": "nowhere/at-all"}, 4, "no readable config.json"),
    ],
)
def test_impossible_settings_are_refused_before_any_work(words, tmp_path, capsys, changes, code, text):
    assert main(words(**changes)) == code
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
