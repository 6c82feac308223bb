"""Every character of a text can be seen, and JSON takes any text and number."""

import json

import pytest

from monet.eval.view.visible import cleaned, encoded, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain <b>", "plain <b>"),
        ("a\x00b", "a\\x00b"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
        ("\u2028\u200b\ufeff", "\\u2028\\u200b\\ufeff"),
        ("\U000e0001", "\\U000e0001"),
        ("lines\nand\ttabs", "lines\nand\ttabs"),
        ("naïve 日本 שלום", "naïve 日本 שלום"),
        ("\x1b[31m\x7f\x85", "\\x1b[31m\\x7f\\x85"),
    ],
)
def test_invisible_characters_become_escapes(text, shown):
    assert visible(text) == shown


def test_json_has_only_visible_text_and_finite_numbers():
    content = {"\ud800": ["\x00", float("nan"), float("inf"), 1.5, None, True, 3], "t": ("\u202e",)}
    assert json.loads(encoded(content)) == {
        "\\ud800": ["\\x00", None, None, 1.5, None, True, 3],
        "t": ["\\u202e"],
    }
    assert cleaned({"a": "b"}) == {"a": "b"}
