"""Layers over only the active keys, in torch and in C++, compared with the loop over all experts."""

from __future__ import annotations

import pytest
import torch

from monet.kernels.decode import op
from monet.kernels.masked import Keep
from tests.kernels.cases import (
    DECODE_MASKS,
    cast_but_gates,
    keep_of,
    keeps_beside_a_bad_token,
    name_of,
    poison_inactive_keys,
    with_small_weights,
)
from tests.kernels.cases import active_layer as layer
from tests.kernels.explicit import DECOMPOSITIONS, Example, keep_of_tokens
from tests.tolerances import assert_close, relative_rms

forms = pytest.mark.parametrize("form", DECOMPOSITIONS)


# M: whole lanes of 16, of 8, and tails; D: tiles of 16 and 64 and tails; T: one token, groups of four and tails
SHAPES = [
    dict(T=1, E=9, M=16, D=70),
    dict(T=1, E=9, M=22, D=10),
    dict(T=1, E=7, M=48, D=16),
    dict(T=2, E=6, M=4, D=34),
    dict(T=7, E=5, M=4, D=6),
    dict(T=13, E=8, M=16, D=150),
    dict(T=9, E=5, M=34, D=66, dense=True),
]


@forms
@pytest.mark.parametrize("mask", DECODE_MASKS)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "C++"])
def test_layer_equals_the_loop(form, mask, shape, dtype):
    example = Example(form, H=3, **shape)
    keep = keep_of(example, mask)
    wanted = example.loop(None if keep is None else keep_of_tokens(keep, example.T))
    example.cast(dtype)
    for copies in (False, True):
        assert_close(f"copies={copies}", layer(example, keep, copies=copies), wanted)


@forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_tokens(form, dtype):
    example = Example(form, T=0, dtype=dtype)
    for keep in (None, Keep(example.random_keep()), Keep(example.random_keep(S=2), torch.zeros(0, dtype=torch.int64))):
        assert layer(example, keep).shape == (0, example.D)


@forms
@pytest.mark.parametrize("copies", [False, True])
def test_bfloat16(form, copies):
    example = cast_but_gates(with_small_weights(Example(form, T=5, E=8, H=4, M=16, D=48)), torch.bfloat16)
    got = layer(example, copies=copies)
    assert got.dtype == torch.bfloat16
    assert_close("bfloat16", got, layer(example.cast(torch.float64)), torch.bfloat16)


@forms
def test_activation_that_is_not_zero_at_zero(form):
    example = Example(form)
    activation = torch.sigmoid
    assert_close("sigmoid", layer(example, activation=activation), example.loop(activation=activation))
    assert_close("sigmoid, C++", layer(example.cast(torch.float32), activation=activation),
                 Example(form).loop(activation=activation))  # fmt: skip


@forms
def test_inactive_weights_are_never_read(form):
    """NaN at every key that no token uses does not reach the result."""
    example = Example(form, T=1, E=6, M=4).cast(torch.float32)
    wanted = layer(example)
    poison_inactive_keys(example)
    assert torch.equal(layer(example), wanted)
    assert torch.equal(layer(example, copies=True), wanted) or relative_rms(layer(example, copies=True), wanted) < 2e-6


@forms
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "C++"])
def test_a_nan_is_passed_on(form, dtype):
    example = Example(form, T=4, dtype=dtype)
    example.x_TD[2] = float("nan")
    for keep in keeps_beside_a_bad_token(example):
        out = layer(example, keep)
        assert out[2].isnan().all()
        assert out[[0, 1, 3]].isfinite().all()


@forms
def test_long_batches_are_done_in_chunks(form, monkeypatch):
    example = Example(form, T=11, dtype=torch.float32)
    keep = Keep(example.random_keep(S=2), torch.arange(11) % 3 - 1)
    wanted = layer(example, keep)
    monkeypatch.setattr(op, "token_chunks", lambda T, elements: [slice(0, 4), slice(4, 8), slice(8, 11)])
    assert_close("chunks", layer(example, keep), wanted)


@forms
def test_number_of_threads_changes_nothing(form):
    example = Example(form, T=6, E=8, M=16, D=300, dtype=torch.float32)
    one = layer(example)
    torch.set_num_threads(2)
    assert torch.equal(layer(example), one)


def test_bad_arguments():
    example = Example("horizontal", dtype=torch.float32)
    example.weights["v.weight"] = example.weights["v.weight"][:, :-1]
    with pytest.raises(ValueError, match=r"v_PD has shape \(19, 6\); expected \(20, any\)"):
        layer(example)
    example = Example("horizontal", dtype=torch.float32)
    example.x_TD = example.x_TD.double()
    with pytest.raises(ValueError, match=r"states are torch.float64, but the first weight is torch.float32"):
        layer(example)
    example = Example("vertical", dtype=torch.float32)
    example.weights["b2"] = example.weights["b2"].bfloat16()
    with pytest.raises(ValueError, match="weights must share a dtype"):
        layer(example)
    example = Example("horizontal", dtype=torch.float32)
    with pytest.raises(ValueError, match="a mask index is beyond the masks"):
        layer(example, Keep(example.random_keep(S=2), torch.full((7,), 2)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["torch", "C++"])
@pytest.mark.parametrize("shape", [(40, 1000), (3, 5), (1000, 40), (1, 1)], ids=str)
def test_an_outdated_copy_is_seen(dtype, shape):
    w_DP = torch.randn(shape, dtype=dtype)
    w_DP[0, 0] = float("nan") if dtype == torch.float32 else 0
    rows_PD = w_DP.t().contiguous()
    assert all(op.is_transposed(w_DP, rows_PD, seed) for seed in range(20))
    assert not op.is_transposed(w_DP + 1e-3, rows_PD, 1) or shape == (1, 1)
    # one expert of two changed, in sixteen columns if the weight has that many
    w_DP[:, -16:] += 1
    assert not all(op.is_transposed(w_DP, rows_PD, seed) for seed in range(3)) or shape == (1, 1)
    w_DP[:, -16:] -= 1
    w_DP[shape[0] // 2] += 1  # one row: found after some calls
    assert not all(op.is_transposed(w_DP, rows_PD, seed) for seed in range(200)) or shape == (1, 1)
