"""The host's cost of starting a gather does not grow with the number of ranks."""

from __future__ import annotations

from benchmarks.scale_exponents import router_gather


def test_a_routers_gather_is_one_tensor():
    assert 0 < router_gather(512) <= 4
