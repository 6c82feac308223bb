"""A model under DistributedDataParallel, two real processes, against one process that averages their gradients."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.distributed.ddp_ranks import CASES, build, loss_of_half
from tests.kernels.explicit import set_sizes
from tests.tolerances import assert_close


def test_gradients_are_the_ranks_mean(ranks, tmp_path, monkeypatch):
    set_sizes(monkeypatch)
    for done in ranks(["-m", "tests.distributed.ddp_ranks", str(tmp_path)]):
        assert done.returncode == 0, done.stderr
    for case, options in CASES.items():
        sums: dict[str, torch.Tensor] = {}
        for half in (0, 1):
            model = build(**options)
            loss_of_half(model, half).backward()
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    sums[name] = sums.get(name, 0) + weight.grad
        first, second = (load_file(tmp_path / f"{case}-{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys() == sums.keys(), case
        assert any("router" in name for name in sums) == (case != "frozen router")
        for name, total in sums.items():
            assert torch.equal(first[name], second[name]), f"{case}: {name} differs between the ranks"
            # both processes and this one add up in float64; the buffers, and so the thresholds, are float32
            assert_close(f"{case}: {name}", first[name], total / 2, torch.float32)
