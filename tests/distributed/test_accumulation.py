"""Sums of ZeRO in bf16-mixed, over micro-batches and two real ranks: float32 for every partitioned part."""

from __future__ import annotations

import json
import math

import pytest

from tests.distributed.accumulation_ranks import CASES, inputs


def test_half_precision_gradients_are_summed_in_float32(ranks, tmp_path):
    pytest.importorskip("deepspeed")
    for done in ranks(["-m", "tests.distributed.accumulation_ranks", str(tmp_path)]):
        assert done.returncode == 0, done.stderr
    gradients = inputs(0) + inputs(1)
    norm = 2 * math.fsum(gradients) / len(gradients)  # norm of four weights with this gradient
    for name in CASES:
        first, second = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
        assert first == second, name
        if name == "zero2 as told":  # the user's setting wins: a sum in bfloat16 stays at its largest term
            assert first["norm"] == 2 / len(gradients) < 0.85 * norm
        else:
            assert first["norm"] == norm, name
            assert first["moment"] == pytest.approx(0.1 * norm, rel=1e-6), name
