"""Router statistics and losses over two real processes with unlike data, against one process on the whole batch."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from tests.distributed.router_ranks import CASES, step


def test_two_ranks_are_one_batch(ranks, tmp_path):
    for done in ranks(["-m", "tests.distributed.router_ranks", str(tmp_path)]):
        assert done.returncode == 0, done.stderr
    for case in ("plain", "saving", "padded"):
        whole = step(CASES[case], 0, 1)
        first, second = (load_file(tmp_path / f"{case}-{rank}.safetensors") for rank in (0, 1))
        assert len([name for name in whole if name.startswith("buffer.")]) == 12
        for name, wanted in whole.items():
            assert torch.equal(first[name], second[name]), f"{case}: {name} differs between the ranks"
            # everything is float64 except the buffers, and the token weights if some tokens are padding
            tolerance = 1e-6 if case == "padded" or name.startswith("buffer.") else 1e-10
            torch.testing.assert_close(
                first[name], wanted, rtol=tolerance, atol=tolerance, msg=lambda m, n=f"{case}, {name}": f"{n}: {m}"
            )
    first, second = (load_file(tmp_path / f"local-{rank}.safetensors") for rank in (0, 1))
    own = "buffer.model.layers.0.router.norm1.running_var"
    assert not torch.allclose(first[own], second[own], rtol=1e-5), "local statistics are each rank's own"
