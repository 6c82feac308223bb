"""The judges without a server: what they accept, and which excerpt they find odd."""

from __future__ import annotations

import pytest

from monet.eval.explain.excerpts import Excerpt
from monet.eval.explain.judges import LabelJudge, Question, TokensJudge


def excerpt(*tokens: str, label: str = "german", marks=()) -> Excerpt:
    return Excerpt(0, 0, 0, "a", label, tuple(range(len(tokens))), tokens, marks=tuple(marks))


@pytest.mark.parametrize(
    ("explanation", "marked", "expected"),
    [
        ('tokens: " der", "\\n"', False, True),
        ('tokens: "er"', False, False),  # a part of a token is no token
        ('tokens: " Hund"', True, True),
        ('tokens: " der"', True, False),
        ("fires at articles such as der", False, True),
        ("", False, False),
    ],
)
def test_tokens(explanation, marked, expected):
    one = excerpt(" der", " Hund", "!", marks=[1])
    assert TokensJudge().accepted([Question(explanation, [one], marked)]) == [[expected]]


@pytest.mark.parametrize(
    ("explanation", "expected"),
    [("label: german", True), ("label: germanic", False), ("label: french", False), ("", False),
     ("label: swiss-german", False), ("text in german", True)],
)  # fmt: skip
def test_labels(explanation, expected):
    assert LabelJudge().accepted([Question(explanation, [excerpt("x")])]) == [[expected]]


def test_of_excerpts_without_anything_in_common_each_is_equally_likely():
    def sets(n):
        return [Excerpt(5 * n + k, 0, 0, "a", str(k), (1,), (str(k),), marks=(0,)) for k in range(5)]

    for judge in (TokensJudge(), LabelJudge()):
        places = judge.odd([sets(n) for n in range(500)])
        assert all(70 < places.count(place) < 130 for place in range(5))


def test_the_odd_one_is_the_rarest():
    same = [excerpt("a", " der", marks=[1]), excerpt(" der", marks=[0])]
    other = excerpt(" der", "b", label="lua", marks=[1])
    for judge in (TokensJudge(), LabelJudge()):
        assert judge.odd([[*same, other], [other, *same], [same[0], other, same[1]]]) == [2, 0, 1]
