"""What the server answers: every view's data, with hostile tokens as visible text."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from monet.eval.attribution.selection import load_masks
from monet.eval.view.api import application
from tests.eval.view.conftest import ORIGIN, TOKEN, busiest, get, post


def test_info_and_overview(client, store):
    info = get(client, "info")
    assert info["experts"] == 512 and info["labels"] == ["left", "<b>middle</b>", "right\\u202e"] and info["live"]
    assert info["layers"] == [[0, 1], [2, 2]] and len(info["edges"]) == 17 and not info["explained"]
    assert len(get(client, "overview")["groups"]) == 2


def test_experts_are_filtered_sorted_and_paged(client):
    whole = get(client, "experts", sort="-count", count=20)
    assert get(client, "experts", sort="-count", count=5, offset=15)["rows"] == whole["rows"][15:]
    assert whole["total"] == 512 and [row["count"] for row in whole["rows"]] == sorted(
        (row["count"] for row in whole["rows"]), reverse=True
    )
    assert get(client, "experts", count=0, **{"min.count": 1})["rows"] == []
    for words in ({"count": 999}, {"count": "x"}, {"offset": "-1"}, {"srt": "count"}, {"offset": "9" * 40}):
        assert get(client, "experts", 400, **words)["error"]


def test_an_expert(client, store):
    name = busiest(store)
    one = get(client, f"expert/{name}")
    assert one["name"] == name and sum(one["histogram"]) == one["count"] and len(one["label_means"]) == 3
    assert one["contexts"][0]["weight"] == pytest.approx(one["max"], rel=1e-3)
    for context in one["contexts"]:
        assert 0 <= context["position"] < len(context["tokens"]) and context["interval"] is None
    assert all(context["interval"] is not None for context in one["samples"])
    assert get(client, f"expert/{one['next']}")["previous"] == name
    assert get(client, f"expert/{one['halves'][0]}")["kind"] == "first"
    texts = json.dumps([one["tokens"], one["contexts"], one["samples"]], ensure_ascii=False)
    assert not {"\x00", "\u202e", "\ud800", "\u2028", "\x1b"} & set(texts)
    assert "<i>" in one["contexts"][0]["document"]


@pytest.mark.parametrize("name", ["9:1", "0:99999", "0:1,0:2", "x", "<script>", "0:i99", "%00", "0:1" * 1000])
def test_an_expert_that_does_not_exist_is_an_error_for_people(client, name):
    assert "error" in get(client, f"expert/{name}", 400)


def test_neighbours(client, store):
    name = busiest(store)
    for by in ("contexts", "labels", "key"):
        found = get(client, f"expert/{name}/neighbours", by=by, count=5)
        assert 0 < len(found) <= 5 and name not in [row["name"] for row in found]
        assert found[0]["similarity"] >= found[-1]["similarity"]
    assert "key" in get(client, "expert/0:i1/neighbours", 400, by="key")["error"]
    assert "beauty" in get(client, f"expert/{name}/neighbours", 400, by="beauty")["error"]


def test_prompt_compare_and_collection(client):
    found = post(client, "prompt", {"text": "hello world"})
    assert len(found["tokens"]) == len(found["loss"]) == len(found["of_token"]) == 11 and found["loss"][0] is None
    assert all(len(one["weights"]) == 11 for one in found["experts"])
    rule = {"rules": [{"label": "left", "min.count": "1"}]}
    size = post(client, "collection", {"collection": rule})
    assert 0 < size["experts"] < 512 and sum(size["by_group"]) == size["experts"] and len(size["weights"]) == 3
    effect = post(client, "compare", {"text": "hello world", "collection": rule})
    assert max(effect["divergence"]) > 0 and effect["before"][1:] == pytest.approx(found["loss"][1:], rel=1e-3)
    nothing = post(client, "compare", {"text": "hello world", "collection": {}})
    assert max(nothing["divergence"]) < 1e-6 and nothing["before"] == nothing["after"]
    for body in (
        {"text": ""},
        {"text": "x" * 600},
        {"text": 3},
        {"text": "a", "group": 9},
        {},
        [],
        {"text": "a", "more": 1},
    ):
        assert post(client, "prompt", body, 400)["error"]


def test_a_continuation_is_a_stream_of_lines(client):
    body = {"text": "abc", "collection": {"add": ["0:i1"]}, "count": 6}
    found = client.post(f"/{TOKEN}/api/continue", json=body)
    lines = [json.loads(line) for line in found.text.splitlines()]
    assert found.status_code == 200 and len(lines) == 6 and all(len(line["text"]) == 2 for line in lines)
    for wrong in (
        {"count": 0},
        {"count": 999},
        {"temperature": -1},
        {"text": "x" * 31, "count": 9},
        {"collection": {"add": ["z"]}},
    ):
        assert post(client, "continue", {**body, **wrong}, 400)["error"]


def test_a_mask_is_saved_once_and_replaced_when_asked(client, store, view_model):
    body = {"name": "mine", "label": "left", "collection": {"add": ["0:1", "0:i3"]}}
    saved = post(client, "masks", body)
    assert saved["experts"] == 17 and load_masks(saved["saved"], view_model)["left"].num_removed == 17
    again = post(client, "masks", {**body, "collection": {"add": ["0:2"]}})
    assert again["exists"] and load_masks(saved["saved"])["left"].num_removed == 17
    post(client, "masks", {**body, "collection": {"add": ["0:2"]}, "overwrite": True})
    assert load_masks(saved["saved"])["left"].num_removed == 1
    assert get(client, "info")["masks"] == {"mine": [1, 0]}
    assert [row["name"] for row in get(client, "experts", mask="mine")["rows"]] == ["0:2"]
    assert "name" in post(client, "masks", {**body, "name": "../x"}, 400)["error"]


def test_without_a_model_only_the_index_is_shown(store):
    client = TestClient(application(store, None, TOKEN), base_url=ORIGIN, headers={"Origin": ORIGIN})
    assert not get(client, "info")["live"]
    asked = {"text": "a", "collection": {}}
    paths = {"prompt": {"text": "a"}, "compare": asked, "continue": asked}
    for path, body in {**paths, "expert/0:1/weights": {}, "expert/0:1/promoted/static": {}}.items():
        assert "--model" in post(client, path, body, 400)["error"]


def test_requests_at_the_same_time_give_the_same_answers(client):
    def ask(n: int):
        return post(client, "compare", {"text": "hello", "collection": {"add": [f"0:i{n % 4}"]}})

    alone = [ask(n) for n in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == alone * 4


def test_a_bug_is_reported_and_does_not_end_the_server(client, store, monkeypatch, capsys):
    monkeypatch.setattr(store, "overview", lambda: 1 / 0)
    assert "ZeroDivisionError" in get(client, "overview", 500)["error"]
    assert "Traceback" in capsys.readouterr().err and get(client, "info")
