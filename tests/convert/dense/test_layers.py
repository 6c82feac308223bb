"""Which layers a text names."""

from __future__ import annotations

import pytest

from monet.convert.dense.layers import parse_layers, routing_groups
from monet.errors import ConfigError


@pytest.mark.parametrize(
    "text, layers",
    [
        ("top:5", [25, 26, 27, 28, 29]),
        ("22-26", [22, 23, 24, 25, 26]),
        ("3,5,7", [3, 5, 7]),
        ("7, 3-5", [3, 4, 5, 7]),
        ("0", [0]),
        ("all", list(range(30))),
        ("top:30", list(range(30))),
    ],
)
def test_layers_are_named_in_several_forms(text, layers):
    assert parse_layers(text, 30) == layers


@pytest.mark.parametrize(
    "text, words",
    [
        ("top:0", "from 1 to the model's 30"),
        ("top:31", "from 1 to the model's 30"),
        ("26-22", "ends before it starts"),
        ("28-30", "layer 30 does not exist"),
        ("3,3", "named twice"),
        ("2-4,3", "named twice"),
        ("top", "cannot read 'top'"),
        ("", "cannot read ''"),
        ("-3", "cannot read '-3'"),
    ],
)
def test_a_wrong_text_is_refused_with_the_reason(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_layers(text, 30)


def test_consecutive_layers_share_a_router():
    assert routing_groups([3, 5, 6, 7, 9], 2) == [[3, 5], [6, 7], [9]]
