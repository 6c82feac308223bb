"""The page as a folder: which experts it has, what it holds, and which folders it never replaces."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pytest

from monet import cli
from monet.errors import ConfigError
from monet.eval.view import limits, static
from monet.eval.view.explanations import Explanation, Explanations
from monet.eval.view.masks import Collection
from monet.eval.view.query import Query

WANTED = static.Wanted(most=70, progress=False)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(static, "FEWEST", 5)


def parts(folder):
    """The registered JSON of a page, by name."""
    found = {}
    for path in sorted((folder / "data").iterdir()):
        ((name, packed),) = re.findall(r'MONET_PAGE\.put\("([\w-]+)", "([\w+/=]+)"\);\n', path.read_text())
        assert path.name == f"{name}.js"
        found[name] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return found


def test_a_page_holds_the_most_specialised_experts(store, view_model, tmp_path, capsys):
    static.write(store, view_model, tmp_path / "page", WANTED)
    found = parts(tmp_path / "page")
    rows = found["table"]["rows"]
    best = store.browse(Query(low={"count": 5}), 0, 70)["rows"]
    assert {row["name"] for row in rows} == {row["name"] for row in best} and len(rows) == 70
    cards = found["shard-0"] + found["shard-1"]
    assert len(found["shard-0"]) == limits.STATIC_SHARD and len(cards) == 70
    for row, card in zip(rows, cards, strict=True):
        whole = store.expert(store.unit(row["name"]))
        assert card["histogram"] == whole["histogram"] and not card.keys() & row.keys()
        for context, wanted in zip(card["contexts"], whole["contexts"], strict=False):
            assert context["window"] == wanted["window"] and len(context["weights"]) == len(context["tokens"])
            assert context["weights"][context["position"]] == pytest.approx(wanted["weight"], rel=0.06)
        assert card["promoted"]["promoted"] and set(card["neighbours"]) == {"contexts", "labels", "key"}
    printed = capsys.readouterr().out
    size = sum(path.stat().st_size for path in (tmp_path / "page").rglob("*") if path.name not in (static.MARK, "data"))
    assert printed.startswith("70 experts, ") and f"{size / 1000:.1f} kB" in printed
    text = "".join(path.read_text() for path in (tmp_path / "page").rglob("*.*"))
    assert str(tmp_path) not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_all_explanations_are_searched_and_no_folder_is_named(store, tmp_path):
    unit = store.unit("0:3")
    said = [
        Explanation(unit.group, unit.number, text, "model", str(tmp_path / "model")) for text in ("first", "second")
    ]
    store.explanations = Explanations(store.index.units, said)
    static.write(store, None, tmp_path / "page", static.Wanted(experts="0:3,0:4", progress=False))
    found = parts(tmp_path / "page")
    assert [row["explanations"] for row in found["table"]["rows"]] == [["first", "second"], []]
    assert [one["model"] for one in found["shard-0"][0]["explained"]["explanations"]] == ["model", "model"]
    assert str(tmp_path) not in json.dumps(found)


def test_without_a_model_there_are_no_weights(store, tmp_path):
    static.write(store, None, tmp_path / "page", static.Wanted(experts="0:3,0:i2", progress=False))
    (card, half) = parts(tmp_path / "page")["shard-0"]
    assert (
        "promoted" not in card
        and all("weights" not in one for one in card["contexts"])
        and "key" not in half["neighbours"]
    )


def test_experts_of_masks_are_added(store, tmp_path):
    removed_RN = store.masks.resolved(Collection(add=["1:i3"]), store.browser)
    store.masks.save("m", "left", removed_RN, Collection(), overwrite=False)
    units = static.chosen(store, static.Wanted(most=20))
    in_mask = [unit for unit in units if unit.group == 1 and unit.i == 3]
    assert len(in_mask) >= 16 and 20 <= len(units) <= 36
    static.write(store, None, tmp_path / "page", static.Wanted(most=20, progress=False))
    found = parts(tmp_path / "page")["table"]
    assert [found["rows"][n]["i"] for n in found["masks"]["m"]] == [3] * len(in_mask)


def test_the_same_index_gives_the_same_bytes(store, tmp_path):
    for name in ("a", "b"):
        static.write(store, None, tmp_path / name, WANTED)
    pages = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_only_a_static_page_is_replaced(store, tmp_path):
    out = tmp_path / "page"
    one = static.Wanted(experts="0:3", progress=False)
    static.write(store, None, out, one)
    static.write(store, None, out, static.Wanted(experts="0:4", progress=False))
    assert parts(out)["table"]["rows"][0]["name"] == "0:4" and [path.name for path in tmp_path.iterdir()] == ["page"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        static.write(store, None, out, one)
    assert (out / "notes.txt").read_text() == "mine"
    other = tmp_path / "thesis"
    other.mkdir()
    static.check_folder(other)  # empty
    for name, text in (
        ("thesis.tex", ""),
        (static.MARK, "{}"),
        (static.MARK, "["),
        (static.MARK, '{"format": "monet-page/1"}'),
    ):
        (other / name).write_text(text)
        with pytest.raises(ConfigError, match="not only a static page"):
            static.write(store, None, other, one)
    with pytest.raises(ConfigError, match="not only a static page"):
        static.write(store, None, other / "thesis.tex", one)


def test_a_page_that_is_too_large_is_not_written(store, tmp_path, capsys):
    with pytest.raises(ConfigError, match="--most"):
        static.write(store, None, tmp_path / "page", static.Wanted(most=70, max_size=0.01, progress=False))
    assert not (tmp_path / "page").exists() and "70 experts" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [static.Wanted(experts="9:9"), static.Wanted(most=0)])
def test_wrong_requests_are_refused(store, wanted):
    with pytest.raises(ConfigError):
        static.chosen(store, wanted)


def test_the_command_writes_a_page(view_folder, tmp_path, capsys):
    words = ["view", str(view_folder), "--static", str(tmp_path / "page"), "--experts", "0:3,1:7"]
    assert cli.main(words) == 0
    assert "2 experts" in capsys.readouterr().out and (tmp_path / "page" / "index.html").is_file()
