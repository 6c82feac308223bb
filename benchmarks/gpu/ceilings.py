"""Upper limits of the device: rates of moving bytes and of multiplying matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.plan import Plan, Row, medians
from benchmarks.measure import time_on_device


def rows(plan: Plan) -> Iterator[Row]:
    """TB/s of a copy, read and written bytes counted, and TFLOP/s of a product of random bf16 matrices."""
    source = torch.randint(255, (plan.copied_bytes,), dtype=torch.uint8, device=plan.device)
    copy = partial(torch.empty_like(source).copy_, source)
    ms = medians(time_on_device({"copy": copy}, plan.device, plan.rounds))["copy"]
    yield {"ceiling": "copy, TB/s", "value": 2 * plan.copied_bytes / ms / 1e9, "ms": ms}
    del source, copy
    size = plan.product_size
    a, b = (torch.randn(size, size, device=plan.device).to(torch.bfloat16) for _ in range(2))
    ms = medians(time_on_device({"product": partial(torch.mm, a, b)}, plan.device, plan.rounds))["product"]
    yield {"ceiling": "bf16 product, TFLOP/s", "value": 2 * size**3 / ms / 1e9, "ms": ms}
