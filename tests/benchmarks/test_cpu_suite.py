"""The CPU suite has a row for every target, verdicts that follow the values, and rows with forced decoding."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from benchmarks import cpu_suite
from benchmarks.cpu_suite import AT_LEAST, AT_MOST, Row
from monet.kernels.decode import choice


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "result.json"
    threads = torch.get_num_threads()
    cpu_suite.main(["--quick", "--threads", "1", "--json", str(path)])
    torch.set_num_threads(threads)
    return json.loads(path.read_text())


def test_every_target_of_the_table_has_rows(result):
    ids = [row["id"] for row in result["rows"]]
    assert len(set(ids)) == len(ids)
    assert {f"C{number}" for number in range(1, 9)} == {name[:2] for name in ids}
    wanted = {"C1", "C2", "C3", "C3-speedup", "C3-vd", "C3-bf16", "C4", "C4-vd", "C5-24", "C6-hd-24", "C6-vd-24",
              "C7-hd-1-k2", "C7-vd-9-k4-training", "C8-hd", "C8-vd-fp32", "C8-step-hd"}  # fmt: skip
    assert wanted <= set(ids)


def test_rows_are_whole(result):
    for row in result["rows"]:
        assert 0 < row["low"] <= row["value"] <= row["high"] < math.inf, row["id"]
        within = row["value"] <= row["must"] if row["bound"] == AT_MOST else row["value"] >= row["must"]
        assert row["meets_must"] is within, row["id"]
        assert row["what"] and row["unit"] in ("ratio", "KiB")
    assert result["environment"]["torch"] == torch.__version__


def test_musts_are_those_of_the_targets(result):
    musts = {row["id"]: (row["bound"], row["must"]) for row in result["rows"]}
    assert musts["C1"] == (AT_MOST, 1.10) and musts["C2"] == (AT_MOST, 1.20)
    assert musts["C3"] == (AT_MOST, 0.60) and musts["C3-speedup"] == (AT_LEAST, 2.5)
    assert musts["C4"] == (AT_MOST, 1.0) and musts["C5-24"] == (AT_MOST, 0.25)
    assert musts["C6-hd-24"] == (AT_MOST, 1.25) and musts["C7-hd-1-k2"] == (AT_LEAST, 1.0)
    assert musts["C8-hd"] == (AT_MOST, 40) and musts["C8-step-vd"] == (AT_MOST, 0.5)


def test_verdict_and_quartiles():
    row = Row("C0", "what", [1.0, 2.0, 3.0, 4.0, 10.0], AT_MOST, 3.0, unit="KiB", ms_ours=5.0)
    assert (row["value"], row["low"], row["high"], row["meets_must"], row["ms_ours"]) == (3.0, 2.0, 4.0, True, 5.0)
    assert not Row("C0", "what", [2.9], AT_LEAST, 3.0)["meets_must"]


def test_a_layer_is_experts_and_a_quarter_of_a_router():
    assert cpu_suite._layer({"experts": [1.0, 2.0], "router": [4.0, 8.0]}, "experts", "router") == [2.0, 4.0]


def test_default_plan_is_the_1_4b_layer_beside_the_papers_mlp():
    plan = cpu_suite.Plan()
    assert (plan.layer.hidden_size, plan.layer.experts, plan.layer.dense_width) == (2048, 512, 5504)
    assert plan.prefill_tokens == 256 and (1, cpu_suite.FORWARD) in plan.listed


def test_decoding_walks_through_tokens_and_both_ways(monkeypatch):
    """The layer's dense path is forced, the other path is chosen automatically, and all tokens are used in turn."""
    seen = []

    def remember(x_TD, *others):
        seen.append((os.environ.get("MONET_DECODE"), x_TD[0, 0].item()))
        return False

    parts = cpu_suite.Parts(cpu_suite.QUICK)
    monkeypatch.setattr("monet.model.experts.is_sparse", remember)
    monkeypatch.setenv("MONET_DECODE", "sparse")
    list(cpu_suite.decode_rows(parts))
    assert os.environ["MONET_DECODE"] == "sparse"
    for wanted in ("auto", "dense"):
        assert len({first for how, first in seen if how == wanted}) >= cpu_suite.QUICK.decode_tokens
    assert {how for how, _ in seen} >= {"auto", "dense"}


def test_masked_rows_are_masked(monkeypatch):
    kept = []
    monkeypatch.setattr("monet.model.experts.is_sparse", lambda *_: True)
    monkeypatch.setattr(choice, "SMALLEST_LAYER", 0)
    for name in ("active_horizontal", "active_vertical"):
        monkeypatch.setattr(
            f"monet.model.experts.{name}", lambda x_TD, *others: (kept.append(others[-1]), torch.zeros_like(x_TD))[1]
        )
    list(cpu_suite.masked_rows(cpu_suite.Parts(cpu_suite.QUICK)))
    masks = [keep for keep in kept if keep is not None]
    assert 0 < len(masks) < len(kept)
    assert all(0.3 < keep.weights_SEE.float().mean() < 0.7 for keep in masks)
