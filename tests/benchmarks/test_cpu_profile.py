"""The operator profile of both formulations at a toy shape."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cpu_profile


def test_both_steps_are_profiled(tmp_path, capsys):
    file = tmp_path / "profile.json"
    cpu_profile.main(["--quick", "--topk", "2", "--decompose", "vertical", "--json", str(file)])
    assert "decode: vertical, k=2, 1 tokens" in capsys.readouterr().out
    steps = json.loads(file.read_text())["steps"]
    assert set(steps) == {"decode", "training"}
    for rows in steps.values():
        assert rows[-1]["operator"].startswith("step by the clock")
        products = [row for row in rows if row["operator"] in ("aten::mm", "aten::addmm")]
        assert sum(row["ms_einsum"] for row in products) > 0 and sum(row["ms_ours"] for row in products) > 0


@pytest.mark.parametrize("decompose", ["horizontal", "vertical"])
def test_both_formulations_compute_the_same(decompose):
    sides = cpu_profile.groups(cpu_profile.QUICK, 2, decompose)
    x_BTD = torch.randn(1, 5, cpu_profile.QUICK.hidden_size)
    for train in (False, True):
        ours, einsum = (group.train(train)(x_BTD) for group in sides.values())
        torch.testing.assert_close(ours, einsum)


def test_a_wrong_number_of_keys_is_refused(capsys):
    with pytest.raises(SystemExit):
        cpu_profile.main(["--quick", "--topk", "0"])
    assert "--topk 0: use 1 to 16" in capsys.readouterr().err
