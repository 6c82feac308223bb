"""Excerpts: one document each, two sides without a common document, and all intervals in turn."""

from __future__ import annotations

import dataclasses

import pytest

from monet.eval.explain.excerpts import Excerpt, Excerpts, by_turns, side_of
from monet.eval.index.text import Window
from monet.eval.index.tokens import TokenTexts
from tests.eval.index.test_tokens import bytewise


def test_the_sides_share_no_document_and_cover_the_contexts(planted, units):
    excerpts = Excerpts(planted, around=2)
    for unit in units:
        sides = {side: excerpts.of(unit, side) for side in ("explain", "score")}
        documents = {side: {one.source for one in found} for side, found in sides.items()}
        assert documents["explain"] and documents["score"] and documents["explain"].isdisjoint(documents["score"])
        contexts = [*planted.contexts(unit), *planted.samples(unit)]
        assert sum(map(len, sides.values())) == len({one.window for one in contexts})
        for one in sides["score"]:
            assert one.weight > 0 and one.ids[one.center] // 4 == unit.i and len(one.ids) <= 5
            edges = planted.interval_edges
            assert one.interval == 0 or edges[one.interval] <= one.weight


def test_both_sides_of_a_seed_are_large():
    sides = [side_of("german", str(n), 3) for n in range(400)]
    assert 160 < sides.count("score") < 240
    assert sides != [side_of("german", str(n), 4) for n in range(400)]


@pytest.mark.parametrize(
    ("ids", "positions", "expected"),
    [
        ([5, 6, 7], None, (0, 3)),
        ([5, 6, 1, 7], None, (0, 2)),
        ([1, 6, 7], None, (0, 0)),
        ([5, 6, 7, 8], [4, 5, 0, 1], (0, 2)),
        ([0, 6, 7, 1], None, (1, 3)),
    ],
)
def test_a_document_ends_at_the_first_boundary(planted, ids, positions, expected):
    class Tokenizer:
        bos_token_id, eos_token_id = 0, 1

    planted.texts.tokenizer = Tokenizer()
    window = Window(3, "left", "a", None, len(ids), ids, positions)
    assert Excerpts(planted).document_of(window) == expected


def test_an_excluded_token_inside_a_text_ends_no_document(planted):
    class Tokenizer:
        bos_token_id, eos_token_id = 0, 1

    settings = dataclasses.replace(planted.info.settings, exclude_ids=[0, 1, 6])
    planted.info = dataclasses.replace(planted.info, settings=settings)
    window = Window(3, "left", "a", None, 3, [0, 5, 6, 7], None)
    assert Excerpts(planted).document_of(window) == (0, 0)  # nothing else is known without a tokenizer
    planted.texts.tokenizer = Tokenizer()
    assert Excerpts(planted).document_of(window) == (1, 4)


def test_a_cut_character_is_shown_whole(planted):
    planted.texts = TokenTexts(bytewise())
    ids = planted.texts.encode("Жa Ж")
    window = Window(3, "left", "a", None, len(ids), ids, None)
    excerpts = Excerpts(planted, around=1)
    assert excerpts.at(window, 2).tokens == ("Ж", "a", " ")  # begins between the two bytes of a character
    assert Excerpts(planted, around=0).at(window, 1).token == "Ж"


def test_all_intervals_take_turns():
    some = [Excerpt(n, 0, 0, "a", "b", (1,), ("x",), 1.0, n // 4) for n in range(12)]
    assert [one.window for one in by_turns(some, 5)] == [8, 4, 0, 9, 5]


def test_marks_are_shown_and_stay_inside():
    one = Excerpt(0, 5, 4, "a", "b", (1, 2, 3), ("x", "y", "z"), 1.0).marked([0, 2, 7, -1])
    assert one.marks == (0, 2) and one.marked_text == "<<x>>y<<z>>" and one.marked_tokens == ["x", "z"]
    assert one.token == "y" and one.text == "xyz"
