"""The benchmark: its baseline computes the paper's definition, its counters are right, and its checks fail."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import cpu_layer
from benchmarks.baseline import EinsumHorizontal, EinsumRouter, EinsumVertical
from benchmarks.measure import peak_bytes, saved_bytes, time_in_turns
from tests.tolerances import assert_close

PLAN = cpu_layer.Plan(hidden_size=6, experts=5, heads=3, expert_width=4, dense_width=8, topks=(2,))


def layer(cls, decompose):
    torch.manual_seed(3)
    module = cls(PLAN.config(2, decompose)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module, torch.randn(2, 3, 6).double()


def routing():
    g1_BTHE, g2_BTHE = torch.randn(2, 2, 3, 3, 5).double().softmax(-1)
    return g1_BTHE, g2_BTHE, torch.einsum("bthi,bthj->btij", g1_BTHE, g2_BTHE)


def relu2(x):
    return x.clamp(min=0) ** 2


def test_horizontal_baseline_is_the_sum_over_all_experts():
    module, x_BTD = layer(EinsumHorizontal, "horizontal")
    g1_BTHE, g2_BTHE, w_BTEE = routing()
    wanted_BTD = torch.zeros_like(x_BTD)
    for i in range(5):
        a_BTM = relu2(x_BTD @ module.u.weight[4 * i : 4 * i + 4].T + module.u.bias[4 * i : 4 * i + 4])
        for j in range(5):
            expert_BTD = a_BTM @ module.v.weight[:, 4 * j : 4 * j + 4].T + module.b[j]
            wanted_BTD = wanted_BTD + w_BTEE[..., i, j, None] * expert_BTD
    assert_close("horizontal", module(x_BTD, g1_BTHE, g2_BTHE), wanted_BTD)


def test_vertical_baseline_is_the_sum_over_all_experts():
    module, x_BTD = layer(EinsumVertical, "vertical")
    g1_BTHE, g2_BTHE, w_BTEE = routing()
    wanted_BTD = torch.zeros_like(x_BTD)
    for i in range(5):
        rows_i = slice(2 * i, 2 * i + 2)
        a1_BTM = relu2(x_BTD @ module.u1.weight[rows_i].T + module.u1.bias[rows_i])
        for j in range(5):
            rows_j = slice(2 * j, 2 * j + 2)
            a2_BTM = relu2(x_BTD @ module.u2.weight[rows_j].T + module.u2.bias[rows_j])
            left = a1_BTM @ module.v11.weight[:, rows_i].T + a2_BTM @ module.v12.weight[:, rows_i].T + module.b1[i]
            right = a1_BTM @ module.v21.weight[:, rows_j].T + a2_BTM @ module.v22.weight[:, rows_j].T + module.b2[j]
            wanted_BTD = wanted_BTD + w_BTEE[..., i, j, None] * torch.cat([left, right], -1)
    assert_close("vertical", module(x_BTD, g1_BTHE, g2_BTHE), wanted_BTD)


def test_router_baseline_thresholds_normalised_logits():
    torch.manual_seed(4)
    router, x_BTD = EinsumRouter(PLAN.config(2, "vertical")), torch.randn(1, 7, 6)
    g_BTHE = router.train()(x_BTD)[1]
    z_THE = router.w2(x_BTD)[0].view(7, 3, 5)
    quantile = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * 2 / 5)).item()
    for h in range(3):
        n_TE = (z_THE[:, h] - z_THE[:, h].mean()) / (z_THE[:, h].var(correction=0) + 1e-5).sqrt()
        for t in range(7):
            active_E = n_TE[t] >= min(n_TE[t].max().item(), quantile)
            assert torch.equal(g_BTHE[0, t, h] > 0, active_E)
            assert_close("g", g_BTHE[0, t, h][active_E], z_THE[t, h][active_E].softmax(-1))


def test_quick_run_writes_every_field(tmp_path, capsys):
    cpu_layer.main(["--quick", "--json", str(tmp_path / "result.json"), "--threads", "1"])
    result = json.loads((tmp_path / "result.json").read_text())
    quick = cpu_layer.QUICK
    assert len(result["rows"]) == 3 * len(quick.topks) * len(quick.settings)
    assert {(row["part"], row["topk"], row["tokens"], row["mode"]) for row in result["rows"]} == {
        (part, topk, tokens, mode)
        for part in ("router", "horizontal", "vertical")
        for topk in quick.topks
        for tokens, mode in quick.settings
    }
    for row in result["rows"]:
        assert row["hidden_size"] == quick.hidden_size and row["experts"] == quick.experts
        for field in ("ms_ours", "ms_einsum", "ms_dense", "speedup_over_einsum", "ratio_to_dense"):
            assert 0 < row[field] < math.inf, (field, row)
    assert [row["part"] for row in result["memory"]] == ["router", "horizontal", "vertical"]
    assert all(row[f"{what}_mb_{side}"] > 0 for row in result["memory"]
               for what in ("saved", "peak") for side in ("ours", "einsum", "dense"))  # fmt: skip
    assert result["environment"]["torch"] == torch.__version__
    assert "speedup_over_einsum" in capsys.readouterr().out


def test_default_plan_is_the_1_4b_layer():
    plan = cpu_layer.Plan()
    assert (plan.hidden_size, plan.experts, plan.heads, plan.expert_width) == (2048, 512, 8, 16)
    assert plan.topks == (8, 32) and {tokens for tokens, _ in plan.settings} == {1, 128, 512, 2048}


@pytest.mark.parametrize("part", ["router", "horizontal", "vertical"])
@pytest.mark.parametrize("mode", [cpu_layer.FORWARD, cpu_layer.BOTH])
def test_a_wrong_weight_is_seen_before_timing(part, mode):
    pairs, _ = cpu_layer.build(cpu_layer.QUICK)
    pair = next(pair for pair in pairs if pair.part == part)
    router = pairs[0].einsum
    assert isinstance(router, EinsumRouter)
    inputs = cpu_layer.make_inputs(cpu_layer.QUICK, 16, router)
    cpu_layer.check_agreement(pair, mode, inputs)
    parameter = next(iter(pair.ours.parameters()))
    parameter.data = parameter.data.clone().mul_(1.001)
    with pytest.raises(AssertionError, match=part):
        cpu_layer.check_agreement(pair, mode, inputs)


def test_saved_bytes_counts_each_new_storage_once():
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp(), [x]) == 4000
    assert saved_bytes(lambda: x * x, [x]) == 0
    assert saved_bytes(lambda: x.exp().view(10, 100).square().sum(), [x]) == 4000


def test_peak_bytes_sees_temporaries_that_are_gone_at_the_end():
    x = torch.randn(1 << 18)

    def run():
        y = (x + 1) * 2  # two arrays of 1 MiB live at once, one of them at the end
        return y.sum()

    assert 2 << 20 <= peak_bytes(run) <= (2 << 20) + 4096


def test_peak_bytes_does_not_count_garbage_from_before():
    left = []

    def run():
        left.clear()  # the garbage collector can do the same at any time
        x = torch.zeros(1 << 18)
        return x + 1

    # the profiler knows the sizes of the blocks that it saw
    peak_bytes(lambda: left.append(torch.zeros(1 << 18)))
    assert 2 << 20 <= peak_bytes(run) <= (2 << 20) + 4096


def test_contestants_take_turns():
    calls = []
    samples = time_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 1e-9)
    assert "".join(calls) == "ab" + "ab" * 3
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}
