"""Layers over active keys in Triton: compared with the loop over all experts in float64; they read only active keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from monet import ExpertMask
from monet.kernels.decode import triton_kernels as kernels
from monet.kernels.decode import triton_op
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
from tests.marks import nightly
from tests.model.tiny import tiny_model, tokens
from tests.tolerances import assert_close

RELU2 = ACT2FN["relu2"]
forms = pytest.mark.parametrize("form", DECOMPOSITIONS)
# Only tails; one token; more tokens than one program handles; one key a side.
SHAPES = [
    dict(T=3, E=11, M=6, D=10, H=3),
    dict(T=1, E=6, M=16, D=38, H=8),
    dict(T=18, E=3, M=2, D=6, H=1, dense=True),
    dict(T=2, E=1, M=4, D=6, H=2),
]
# Small tiles, so that every loop runs more than once and ends in a tail.
SMALL = {
    "hidden": {"block_d": 4, "elements": 8, "tokens": 2, "num_warps": 4},
    "mix": {"programs": 3, "block_u": 4, "num_warps": 4},
    "output": {"block_d": 4, "elements": 64, "num_warps": 4},
}


def layers() -> Iterator[Any]:
    """Every shape with every mask; most masks of the largest shape are slow."""
    for shape, mask in itertools.product(SHAPES, DECODE_MASKS):
        slow = shape["T"] > 16 and mask not in ("none", "a soft mask a token")
        yield pytest.param(mask, shape, id=f"{name_of(shape)}-{mask}", marks=pytest.mark.slow if slow else ())


@forms
@pytest.mark.parametrize(("mask", "shape"), layers())
def test_layer_equals_the_loop(form, mask, shape):
    compare(form, mask, shape)


@pytest.mark.parametrize(
    ("form", "mask"),
    [("horizontal", "none"), ("vertical", "a soft mask a token"), nightly("horizontal", "a soft mask a token"),
     nightly("vertical", "none")],
)  # fmt: skip
def test_layer_in_many_tiles_equals_the_loop(form, mask, monkeypatch):
    monkeypatch.setattr(triton_op, "LAUNCH", SMALL)
    compare(form, mask, SHAPES[0])


def compare(form: str, mask: str, shape: dict) -> None:
    """Output weights as copies with contiguous rows, and in place."""
    example = Example(form, **shape)
    keep = keep_of(example, mask)
    wanted = example.loop(None if keep is None else keep_of_tokens(keep, example.T))
    example.cast(torch.float32)
    for copies in (False, True):
        got = layer(example, keep, RELU2, copies)
        assert got.dtype == torch.float32
        assert_close(f"copies={copies}", got, wanted)


@forms
@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "sigmoid"])
def test_activations(form, name):
    """ReLU and SiLU are fused, torch applies the others. A sigmoid is not zero at zero."""
    example, activation = Example(form, T=3, E=9), ACT2FN[name]
    wanted = example.loop(activation=activation)
    assert_close(name, layer(example.cast(torch.float32), activation=activation), wanted)


@forms
@pytest.mark.parametrize("mask", ["none", "a mask a token"])
def test_half_precision_with_float32_gates(form, mask):
    example = cast_but_gates(with_small_weights(Example(form, T=3, E=11, M=6, D=22)), torch.float16)
    keep = keep_of(example, mask)
    got = layer(example, keep, RELU2)
    example.cast(torch.float64)
    assert got.dtype == torch.float16
    assert_close("float16", got, example.loop(None if keep is None else keep_of_tokens(keep, 3)))


@forms
def test_no_tokens(form):
    example = Example(form, T=0, dtype=torch.float32)
    for keep in (None, Keep(example.random_keep(S=2), torch.zeros(0, dtype=torch.int64))):
        assert layer(example, keep).shape == (0, example.D)


@forms
@pytest.mark.parametrize("copies", [False, True])
def test_inactive_weights_are_never_read(form, copies):
    example = Example(form, T=2, E=9, M=4).cast(torch.float32)
    wanted = layer(example, copies=copies)
    poison_inactive_keys(example)
    assert torch.equal(layer(example, copies=copies), wanted)


@forms
def test_a_token_does_not_depend_on_the_others(form):
    example = Example(form, T=18, E=9, dtype=torch.float32)
    whole = layer(example, activation=RELU2)
    for token in (0, 17):
        alone = Example(form, T=18, E=9, dtype=torch.float32)
        rows = slice(token, token + 1)
        alone.x_TD, alone.g1_THE, alone.g2_THE = alone.x_TD[rows], alone.g1_THE[rows], alone.g2_THE[rows]
        assert torch.equal(layer(alone, activation=RELU2), whole[rows])


@forms
def test_not_a_number_is_handed_on_to_its_token_alone(form):
    example = Example(form, T=4, dtype=torch.float32)
    example.x_TD[2] = float("nan")
    for keep in keeps_beside_a_bad_token(example):
        out = layer(example, keep, RELU2)
        assert out[2].isnan().all()
        assert out[[0, 1, 3]].isfinite().all()


@forms
def test_a_mask_number_beyond_the_masks_gives_no_number(form):
    example = Example(form, T=3, dtype=torch.float32)
    out = layer(example, Keep(example.random_keep(S=2), torch.tensor([1, 2, -1])), RELU2)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


@forms
@pytest.mark.parametrize("mask", ["none", "a mask a token"])
def test_operators_fit_torch_compile(form, mask):
    """Schemas and fakes agree with the operators, and no code between them reads data."""
    example = Example(form, T=2, E=4, dtype=torch.float32)
    keep = keep_of(example, mask)
    compiled = torch.compile(lambda: layer(example, keep, RELU2), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_close("compiled", compiled(), layer(example, keep, RELU2))


@pytest.mark.parametrize(
    ("form", "masked"),
    [("horizontal", False), ("vertical", True), nightly("horizontal", True), nightly("vertical", False)],
)
def test_generation_gives_the_dense_models_tokens(form, masked, monkeypatch, count_launches):
    model, ids = tiny_model(form, num_hidden_layers=2), tokens(2, 3)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 2, "min_new_tokens": 2,
               "pad_token_id": 0, "cache_implementation": "static"}  # fmt: skip
    if masked:
        options["expert_mask"] = [ExpertMask.random(model.config, 15, seed=1), None]
    monkeypatch.setenv("MONET_KERNELS", "torch")
    monkeypatch.setenv("MONET_DECODE", "dense")
    wanted = model.generate(ids, **options)
    monkeypatch.setenv("MONET_KERNELS", "triton")
    monkeypatch.setenv("MONET_DECODE", "sparse")
    launches = count_launches(kernels, "output_kernel")
    assert torch.equal(model.generate(ids, **options), wanted)
    assert len(launches) == 2 * 2
