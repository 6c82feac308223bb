"""Filters and orders, compared with loops over the rows."""

import math

import numpy as np
import pytest

from monet.errors import ConfigError
from monet.eval.view.browse import first_places
from monet.eval.view.query import Query
from monet.eval.view.visible import visible


def all_rows(store):
    return [store.row(n) for n in range(len(store.columns))]


def names(store, **words):
    found = store.browse(Query.of(words), 0, 200)
    assert found["total"] >= len(found["rows"])
    return [row["name"] for row in found["rows"]]


def wanted(store, keep, key=lambda row: -row["label_share"], count=200):
    rows = [row for row in all_rows(store) if keep(row)]
    rows.sort(key=lambda row: (math.isnan(key(row)), key(row)))
    return [row["name"] for row in rows][:count]


def is_pair(row):
    return row["kind"] == "pair"


def test_filters(store):
    label = store.browser.labels[1]
    assert names(store, label=label) == wanted(store, lambda row: is_pair(row) and row["label"] == label)
    assert names(store, group="1", **{"min.count": "5"}) == wanted(
        store, lambda row: is_pair(row) and row["group"] == 1 and row["count"] >= 5
    )
    assert names(store, kind="half") == wanted(store, lambda row: not is_pair(row))
    assert names(store, kind="all", **{"max.max": "0.5", "min.max": "0.25"}) == wanted(
        store, lambda row: 0.25 <= row["max"] <= 0.5
    )


def test_orders(store):
    assert names(store, sort="-count") == wanted(store, is_pair, lambda row: -row["count"])
    assert names(store, sort="token_entropy") == wanted(store, is_pair, lambda row: row["token_entropy"])
    assert names(store, sort="unit", group="0") == [f"0:{n}" for n in range(200)]
    assert (
        store.browse(Query.of({"sort": "-count"}), 7, 5)["rows"]
        == store.browse(Query.of({"sort": "-count"}), 0, 12)["rows"][7:]
    )


def test_tokens_are_searched_by_their_visible_text(store):
    def has(text):
        return lambda row: is_pair(row) and any(text.lower() in visible(one).lower() for one, _ in row["tokens"])

    for text in ("SCRIPT", "\\u202e", "日", " "):
        assert set(names(store, token=text, **{"sort": "unit"})) == set(
            wanted(store, has(text), lambda row: 0, 10**6)[:200]
        )
    assert "0:0" not in names(store, token="nothing has this")
    best = store.browse(Query.of({"token": "日本", "whole": "1", "sort": "-match"}), 0, 1)["rows"][0]
    share = dict(best["tokens"])["日本"] / best["count"]
    assert share == max(
        dict(row["tokens"]).get("日本", 0) / max(row["count"], 1) for row in all_rows(store) if is_pair(row)
    )


@pytest.mark.parametrize("words", [{"label": "absent"}, {"group": "9"}, {"mask": "absent"}, {"sort": "-detection"}])
def test_names_that_the_index_lacks_are_refused(store, words):
    with pytest.raises(ConfigError):
        store.browse(Query.of(words), 0, 5)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5, 20, 99])
def test_first_places_are_those_of_a_stable_sort(descending, count):
    values = np.random.default_rng(0).integers(0, 5, 40).astype(np.float32)
    values[[3, 17]], values[[5, 30]] = np.nan, np.inf
    key = np.where(np.isnan(values), np.inf, np.clip(-values if descending else values, -9, 9))
    assert first_places(values, count, descending).tolist() == np.argsort(key, kind="stable")[:count].tolist()


def test_the_overview_counts_every_expert(store):
    found, rows = store.overview(), [row for row in all_rows(store) if is_pair(row)]
    for one in found["groups"]:
        own = [row for row in rows if row["group"] == one["group"]]
        alive = [row for row in own if row["count"]]
        assert one["never_fire"] == len(own) - len(alive) and one["experts"] == len(own)
        assert sum(one["rate"]) == sum(one["label_share"]) == sum(one["labels"]) == len(alive)
        assert sum(one["specialists"]) == sum(row["label_share"] >= found["specialist"] for row in alive)
    assert np.sum(found["density"]) == sum(row["count"] > 0 for row in rows)
