"""The memory that an index needs is known before it starts."""

from __future__ import annotations

import torch

from monet.eval.index.plan import bytes_needed, bytes_on_disk, readable
from monet.eval.index.tables import Sizes, Tables
from monet.eval.index.units import Units

GB = 1e9


def test_the_plan_is_the_size_of_the_tables():
    units = Units(1, 32)
    for vocabulary in (0, 50):
        tables = Tables(0, Sizes(units.per_group, 16, 6, 4, vocabulary, 0), torch.device("cpu"))
        held = [tables.top.key_NQ, tables.top.payload_NQ, tables.top.bar_N, tables.samples.key_NQ,
                tables.samples.payload_NQ, tables.samples.bar_N, tables.histogram_X, tables.sum_X, tables.square_U,
                tables.token_X]  # fmt: skip
        needed = bytes_needed(1, 32, 16, 6, vocabulary, 512)
        assert sum(needed.values()) == sum(tensor.nbytes for tensor in held)


def test_a_model_of_1_57_million_experts_fits_the_promised_memory():
    """The released 1.4B: six routing groups of 512 * 512 experts, vocabulary 32,000, with 14 labels."""
    needed = bytes_needed(groups=6, keys=512, top=16, labels=14, vocabulary=32000, token_memory=512)
    assert Units(6, 512).experts == 1_572_864
    assert needed["firing tokens"] == 0  # 202 GB: estimated from samples
    assert sum(needed.values()) / 6 < 1 * GB  # the specification's limit for one routing group
    assert sum(needed.values()) < 1.2 * GB
    disk = bytes_on_disk(groups=6, keys=512, top=16, labels=14)
    assert disk["contexts"] < 0.253 * GB and disk["samples"] < 0.253 * GB and sum(disk.values()) < 1.0 * GB


def test_sizes_are_readable():
    assert [readable(size) for size in (12, 3_400, 5_600_000, 1_234_000_000)] == [
        "12 bytes", "3.4 kB", "5.6 MB", "1.2 GB",
    ]  # fmt: skip
