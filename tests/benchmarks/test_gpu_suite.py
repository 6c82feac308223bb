"""The GPU suite without a GPU: all sections run at toy sizes, a failure loses one section, and counts are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu import bandwidth, correctness, decode, layers, models, plan, sweep, worker
from benchmarks.measure import time_on_device
from benchmarks.tables import markdown
from monet.errors import ConfigError
from tests.benchmarks import fake_worker

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy():
    return plan.quick(CPU)


@pytest.fixture(scope="module")
def events():
    """Events of each section at toy sizes, from the worker's function in this process."""
    sent = []
    worker.work(cast(Any, SimpleNamespace(send=sent.append)), list(worker.SECTIONS), "cpu", True)
    assert "plain torch" in sent[0]["environment"]["kernels"]
    return {name: [event for event in sent if event.get("section") == name] for name in worker.SECTIONS}


@pytest.mark.parametrize("name", worker.SECTIONS)
def test_every_section_runs_at_toy_sizes(name, events):
    first, *rows, last = events[name]
    assert first == {"section": name, "start": True} and last["end"] and last["error"] is None
    assert rows and all(row["section"] == name and row["row"] for row in rows)
    json.dumps(events[name], allow_nan=False)


def test_every_target_is_measured_by_some_section(events):
    measured = {}
    for event in (event for sent in events.values() for event in sent):
        measured |= event.get("row", {}).get("targets", {})
    assert measured.keys() == plan.TARGETS.keys()
    # The peak rate of a CPU is unknown.
    unknown = {"G14 HD", "G14 VD"}
    assert all(measured[name] is None if name in unknown else measured[name] > 0 for name in measured)


def test_a_failing_section_says_so_after_its_rows(toy, monkeypatch):
    def rows(plan):
        yield {"figure": 1}
        raise ValueError("no such thing")

    monkeypatch.setattr(layers, "rows", rows)
    events = []
    worker.run_section("layers", toy, events.append)
    assert [event.get("row") for event in events] == [None, {"figure": 1}, None]
    assert events[-1]["error"] == "ValueError: no such thing"


@pytest.fixture
def suite_of(monkeypatch, tmp_path):
    """Run the suite over sections of these names with the stand-in for the worker; returns the file it wrote."""

    def run(*names, target=fake_worker.work, is_quick=False):
        section = worker.Section("Toy", "none:none", 5.0 / gpu_suite.TOY_PATIENCE if is_quick else 5.0)
        monkeypatch.setattr(gpu_suite, "SECTIONS", {name: section for name in names})
        monkeypatch.setattr(gpu_suite, "work", target)
        suite = gpu_suite.Suite(list(names), tmp_path / "result.json", is_quick)
        gpu_suite.run(suite, "cpu")
        gpu_suite.show(suite)
        return json.loads((tmp_path / "result.json").read_text())

    return run


def test_a_lost_section_costs_that_section_alone(suite_of, capsys):
    result = suite_of("first", "crashes", "fails", "loses", "hangs", "last")
    errors = {name: section["error"] for name, section in result["sections"].items()}
    assert errors["first"] is errors["loses"] is errors["last"] is None
    assert errors["crashes"] == "the process ended (exit code 3)" and errors["fails"] == "ValueError: no"
    assert errors["hangs"].startswith("stopped after its 5 s")
    assert all(section["rows"] == [{"figure": None, "targets": {"G1": 1.2, "G8 HD": 30.0}}]
               for section in result["sections"].values())  # fmt: skip
    printed = capsys.readouterr().out
    assert "crashes: the process ended" in printed
    assert printed.rstrip().splitlines()[-1].endswith("failed: crashes, fails, hangs")


def test_a_worker_that_never_starts_is_given_up(suite_of):
    result = suite_of("first", "second", target=fake_worker.dies_at_once)
    assert [section["error"] for section in result["sections"].values()] == ["not run", "not run"]


def test_verdicts(suite_of):
    rows = {row["id"]: row for row in suite_of("first")["rows"]}
    assert rows["G1"]["value"] == 1.2 and rows["G1"]["meets_must"] is True
    assert rows["G8 HD"]["meets_must"] is False and rows["G14 VD"]["meets_must"] is None
    assert {name.split()[0] for name in rows} == {f"G{n}" for n in range(1, 15)}


def test_verdicts_where_more_is_better():
    suite = gpu_suite.Suite(["layers"], None, is_quick=False)
    suite.sections["layers"]["rows"] = [{"targets": {"G6 HD": 1.9, "G7": 2.0}}]
    verdicts = {row["id"]: row["meets_must"] for row in suite.targets()}
    assert verdicts["G6 HD"] is False and verdicts["G7"] is True
    suite.is_quick = True
    assert {row["meets_must"] for row in suite.targets()} == {None}


def test_results_are_named_by_device_and_date(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_suite, "RESULTS", tmp_path)
    suite = gpu_suite.Suite(["layers"], None, is_quick=False)
    suite.take({"environment": {"device": "NVIDIA H100 80GB", "date": "2026-01-02T03:04:05+00:00"}})
    suite.write()
    assert [path.name for path in tmp_path.iterdir()] == ["NVIDIA-H100-80GB-20260102T030405.json"]


def test_sections_together_take_less_than_ten_minutes():
    assert sum(section.seconds for section in worker.SECTIONS.values()) <= gpu_suite.TOTAL_SECONDS < 600


@pytest.mark.parametrize("arguments, named", [(["--device", "cpu"], "--quick"), ([], "--device cpu --quick")])
def test_what_cannot_run_is_refused(arguments, named, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main(arguments) == ConfigError.exit_code
    assert named in capsys.readouterr().err


def test_the_command_runs_as_a_file_from_anywhere(tmp_path):
    """The imports of the file are found; a refusal has no traceback."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == ConfigError.exit_code and done.stderr.startswith("error: --device cpu would take hours")


def test_the_command_shows_and_writes_the_sections(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_suite, "work", fake_worker.work)
    words = ["--device", "cpu", "--quick", "--json", str(tmp_path / "out.json"), "--sections", "layers", "decode"]
    assert gpu_suite.main(words) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["toy_sizes"] and list(result["sections"]) == ["layers", "decode"]
    assert capsys.readouterr().out.rstrip().endswith("no failure")


def test_the_planned_sizes_are_the_released_models():
    shapes = {shape.name: shape for shape in plan.full(CPU).shapes}
    assert plan.full(CPU).shape == shapes["1.4B"]
    for name, millions in (("850M", 853.5), ("1.4B", 1465.2), ("4.1B", 4173.4)):
        with torch.device("meta"):
            model = models.MonetForCausalLM(shapes[name].config("vertical", 8))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_training_halves_the_micro_batch_until_it_fits(toy, monkeypatch):
    tried = []

    def train(plan, name, model, loss_of, micro):
        tried.append(micro)
        if micro > 1:
            raise torch.OutOfMemoryError("too much")
        return {"micro_batch": micro}

    monkeypatch.setattr(models, "timed_training", train)
    assert models._train(toy, "toy", lambda: None, lambda model, ids: ids) == {"micro_batch": 1}
    assert tried == [2, 1]


@pytest.mark.parametrize("form", plan.FORMS)
def test_models_route_to_about_k_keys(form, toy):
    model = models.monet(toy, form, torch.float32)
    assert not model.training
    with torch.no_grad():
        probs = model(models.random_tokens(toy, 4, 12), use_cache=False, output_router_probs=True).router_probs
    active = torch.stack([(g > 0).sum(-1).float().mean() for g in probs[0]])
    assert ((active > 0.4 * toy.topk) & (active < 2 * toy.topk)).all()


@pytest.mark.parametrize("path", decode.PATHS)
def test_timed_decoding_gives_the_tokens_of_generate(path, toy):
    model = models.monet(toy, "vertical", torch.float32)
    prompt = models.random_tokens(toy, 1, toy.prompt)
    wanted = model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=True, eos_token_id=None)[
        0, toy.prompt :
    ]
    decoding = decode.Decoding(model, prompt, length=toy.prompt + 8)
    got = [int(decoding.token_11)] + [int(decode.on_path(path, decoding.step)) for _ in range(5)]
    assert got == wanted.tolist()


def test_paths_hold_for_the_call_alone(monkeypatch):
    monkeypatch.setenv("MONET_DECODE", "auto")
    assert decode.on_path("sparse", lambda: os.environ["MONET_DECODE"]) == "sparse"
    assert os.environ["MONET_DECODE"] == "auto" and "MONET_DECODE_COPY" not in os.environ


def test_unwritten_memory_is_nan_for_a_while():
    with correctness.unwritten_is_nan():
        assert torch.empty(1000).isnan().all() and torch.ones(3).new_empty(10).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("fault", ["scaled", "unwritten", "gradient"])
def test_a_wrong_op_is_found(fault, toy, monkeypatch):
    right, all_cases = correctness.horizontal_experts, correctness.cases

    def wrong(p_TEM, *arguments):
        out_TD = right(p_TEM, *arguments)
        if p_TEM.dtype == torch.float64:
            return out_TD
        if fault == "scaled":
            return out_TD * 1.0001
        if fault == "gradient":
            return out_TD.detach() + 0 * out_TD
        return torch.cat([out_TD[:-1], torch.empty_like(out_TD[-1:])])

    def cases(*arguments):
        return (case for case in all_cases(*arguments) if case.op in ("horizontal experts", "vertical experts"))

    monkeypatch.setattr(correctness, "horizontal_experts", wrong)
    monkeypatch.setattr(correctness, "cases", cases)
    rows = []
    with pytest.raises(AssertionError, match="horizontal experts odd float32"):
        for row in correctness.rows(toy):
            rows.append(row)
    assert {row["op"].split()[0] for row in rows if not row["ok"]} == {"horizontal"}


def test_interpreted_kernels_are_not_asked_for_bfloat16(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert correctness.dtypes(CPU) == (torch.float32,)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert torch.bfloat16 in correctness.dtypes(CPU)


def test_least_bytes_of_the_layer(toy):
    T, E, H, M = toy.tokens, 16, 2, 4
    mb = {operation.name: operation.num_bytes for operation in bandwidth.operations(toy)}
    hidden, gates = T * E * M * 4, 2 * T * H * E * 4
    assert mb["HD mixing forward"] == 2 * hidden + gates + T * E * 4
    assert mb["HD mixing backward"] == 3 * hidden + 2 * gates + T * E * 4
    assert mb["VD mixing forward"] == 3 * hidden + gates + 2 * T * E * 4
    assert mb["routing statistics"] == gates // 2 and mb["routing forward, training"] == gates


def test_contestants_of_a_device_take_turns():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    samples = time_on_device(runs, CPU, rounds=3, warmup=1)
    assert "".join(calls) == "ab" + "ab" * 3 and [len(values) for values in samples.values()] == [3, 3]


def test_sweep_keeps_the_best_of_each_parameter_and_restores(toy, monkeypatch):
    parameters = {"block": 64, "num_warps": 4, "num_stages": 2}

    def milliseconds(plan, mine):
        if parameters["block"] > 128:
            raise RuntimeError("out of shared memory")
        return abs(parameters["block"] - 128) + abs(parameters["num_warps"] - 2) + 1

    monkeypatch.setattr(sweep, "milliseconds", milliseconds)
    rows = list(sweep._descend(toy, "mix", parameters, []))
    assert parameters == {"block": 64, "num_warps": 4, "num_stages": 2}
    assert {name: rows[-1][name] for name in parameters} == {"block": 128, "num_warps": 2, "num_stages": 2}
    assert rows[-1]["ms"] == 1 and rows[0]["ms"] == 67
    assert [row["note"] for row in rows if row["ms"] is None] == ["RuntimeError: out of shared memory"]


def test_table():
    text = markdown([{"a": 1.5, "b": True}, {"a": None, "b": "x"}], {"a": ".2f", "b": ""})
    assert text.splitlines() == ["| a    | b   |", "|------|-----|", "| 1.50 | yes |", "|      | x   |"]
