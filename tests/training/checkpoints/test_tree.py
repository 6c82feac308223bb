"""State as JSON and tensors: exact in both directions, with errors for values that it cannot store."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monet.errors import CheckpointError
from monet.training.checkpoints.tree import TAG, decode, encode


def through_json(value):
    document, tensors = encode(value)
    return decode(json.loads(json.dumps(document, allow_nan=False)), tensors)


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=20,
)


def same(first, second) -> bool:
    """Equality that distinguishes 1, True and 1.0."""
    if type(first) is not type(second):
        return False
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return same(list(first.items()), list(second.items()))
    return first == second


@given(trees)
def test_any_tree_comes_back_with_its_types(tree):
    assert same(through_json(tree), tree)


@pytest.mark.parametrize("tensor", [
    torch.tensor(3.0),
    torch.randn(3, 4).to(torch.bfloat16),
    torch.randn(4, 3).T,
    torch.tensor([float("nan"), float("inf"), -0.0]),
    torch.empty(0, 5, dtype=torch.int64),
    torch.tensor([True, False]),
    torch.arange(5, dtype=torch.uint8),
])  # fmt: skip
def test_tensors_keep_dtype_shape_and_bits(tensor):
    back = through_json({"a": [tensor]})["a"][0]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_tensors_that_share_memory_come_back_apart():
    base = torch.arange(6.0)
    back = through_json([base, base[2:4], base])
    back[0].zero_()
    assert back[1].tolist() == [2.0, 3.0]
    assert back[2].tolist() == base.tolist()


def test_numpy_values_keep_their_type():
    state = np.random.RandomState(3).get_state(legacy=True)
    name, words, *rest = through_json(state)
    assert name == "MT19937" and words.dtype == np.uint32 and (words == state[1]).all()
    assert tuple(rest) == state[2:]
    scalar = through_json(np.float32(0.1))
    assert type(scalar) is np.float32 and scalar == np.float32(0.1)
    assert through_json(np.zeros((), dtype=np.int16)).shape == ()


def test_special_values():
    assert str(through_json([float("nan"), float("inf"), -0.0])) == "[nan, inf, -0.0]"
    assert through_json(torch.Size([2, 3])) == torch.Size([2, 3])
    assert type(through_json(torch.Size([2]))) is torch.Size
    assert through_json(torch.bfloat16) is torch.bfloat16
    assert type(through_json(OrderedDict(b=1, a=2))) is OrderedDict
    assert list(through_json(OrderedDict(b=1, a=2))) == ["b", "a"]


def test_keys_with_one_name_do_not_collide():
    back = through_json({1: torch.ones(1), "1": torch.zeros(1), TAG: "tensor"})
    assert [(key, type(key)) for key in back] == [(1, int), ("1", str), (TAG, str)]
    assert [float(value) for value in list(back.values())[:2]] == [1.0, 0.0]


@pytest.mark.parametrize("value", [object(), Path("x"), {1, 2}, lambda: 0, np.array(["text"]), 1j])
def test_unknown_types_are_refused_with_their_path(value):
    with pytest.raises(CheckpointError, match=r"callbacks\.mine\.2"):
        encode({"callbacks": {"mine": [0, 0, value]}})


@pytest.mark.parametrize("document", [{TAG: "eval", "value": "1+1"}, {TAG: "dtype", "value": "load"}])
def test_unknown_tags_are_refused(document):
    with pytest.raises(CheckpointError, match="unknown kind"):
        decode(document, {})


def test_a_missing_tensor_is_named():
    document, _ = encode({"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="'a'"):
        decode(document, {})
