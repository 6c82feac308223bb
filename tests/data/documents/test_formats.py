"""Formats of files: JSON lines under every usual name, tables by column, documents between separators."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from monet.data.documents.formats import described
from monet.data.documents.records import read_documents
from monet.data.documents.sources import Document, Skipped, TextFile
from monet.data.preparation.prepare import prepare
from monet.errors import ConfigError, DataError
from tests.data.documents.test_sources import PACKED

LINES = '{"text": "one\\n", "url": "http://x"}\n{"text": "two", "url": "http://y"}\n'


def read(path: Path, content: str | bytes, skipped: Skipped | None = None, **keys) -> list[Document]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_documents(TextFile(path, "d", path.name), skipped or Skipped(), **keys))


def texts(path: Path, content: str | bytes, skipped: Skipped | None = None, **keys) -> list[str]:
    return [document.text for document in read(path, content, skipped, **keys)]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonlines", ".json", ".JSON"])
def test_json_lines_have_many_names(tmp_path, suffix, packing):
    path = tmp_path / f"c4-train.00000-of-00004{suffix}{packing}"
    assert texts(path, PACKED[packing](LINES.encode())) == ["one\n", "two"]


def test_a_json_document_is_no_json_lines(tmp_path):
    for content in ('{\n  "name": "package"\n}\n', '{"name": "package"}', "[1, 2]", '{"a": 1}\n[2]\n'):
        assert texts(tmp_path / "package.json", content) == [content]


def test_json_lines_without_the_key_are_refused_and_not_taken_as_text(tmp_path):
    with pytest.raises(DataError, match=r"no key 'text' among \['body', 'id'\].*--text_key"):
        read(tmp_path / "a.json", '{"body": "one", "id": 1}\n{"body": "two", "id": 2}\n')


def test_a_long_first_record_is_a_record(tmp_path):
    long = "word " * 300_000
    assert texts(tmp_path / "a.json", json.dumps({"id": 1, "text": long}) + "\n") == [long]


def test_an_array_of_records_is_refused_with_the_way_out(tmp_path):
    content = '[{"text": "one"},\n {"text": "two"}]\n'
    with pytest.raises(DataError, match=r"a.json: a JSON array; .*--format text"):
        read(tmp_path / "a.json", content)
    assert texts(tmp_path / "a.json", content, file_format="text") == [content]


def test_json_lines_under_a_name_of_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"part-0.txt: looks like JSON lines; .*--format jsonl"):
        read(tmp_path / "part-0.txt", LINES)
    assert texts(tmp_path / "part-0.txt", LINES, file_format="jsonl") == ["one\n", "two"]
    assert texts(tmp_path / "part-0.txt", LINES, file_format="text") == [LINES]


def test_keys_inside_keys(tmp_path):
    record = {"data": {"text": "x", "meta": {"id": 7}}}
    keys = {"text_key": "data.text", "source_key": "data.meta.id"}
    assert [(d.text, d.source) for d in read(tmp_path / "a.jsonl", json.dumps(record), **keys)] == [("x", "7")]
    assert texts(tmp_path / "b.jsonl", '{"data.text": "y"}', **keys) == ["y"]
    with pytest.raises(DataError, match=r"no key 'data.text' among \['data'\]"):
        read(tmp_path / "a.jsonl", '{"data": {}}', **keys)
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([record, {"data": {"text": "z", "meta": None}}]), table)
    found = list(read_documents(TextFile(table, "d", "a.parquet"), Skipped(), **keys))
    assert [(document.text, document.source) for document in found] == [("x", "7"), ("z", "a.parquet:2")]


BOTH = {"text_key": "title, data.body", "source_key": "id"}


def test_several_keys_make_one_text(tmp_path):
    records = [
        {"title": "Rivers", "data": {"body": "They run."}, "id": "a"},
        {"title": None, "data": {"body": "No title."}, "id": "b"},
        {"title": "", "data": {"body": "Empty title."}, "id": "c"},
        {"title": "", "data": {"body": ""}, "id": "d"},
    ]
    wanted = [("Rivers\n\nThey run.", "a"), ("No title.", "b"), ("Empty title.", "c")]
    skipped, table = Skipped(), tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records), table)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    for found in (
        read(tmp_path / "a.jsonl", lines, skipped, **BOTH),
        read(tmp_path / "a.json", lines, skipped, **BOTH),
        read(table, table.read_bytes(), skipped, **BOTH),
        read(
            tmp_path / "a.csv", "id,title,data.body\na,Rivers,They run.\nb,,No title.\nc,,Empty title.\nd,,\n", **BOTH
        ),
    ):
        assert [(document.text, document.source) for document in found] == wanted
    assert skipped.counts == {"empty": 3}
    assert texts(tmp_path / "b.jsonl", '{"title, data.body": "as it is"}', **BOTH) == ["as it is"]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.jsonl", '{"title": "x"}', r"a\.jsonl:1: no key 'data\.body' among \['title'\]"),
    ("a.jsonl", '{"title": 3, "data": {"body": "x"}}', "the value of 'title' is int, not text"),
    ("a.jsonl", '{"title": null, "data": {"body": null}}', "the value of 'title' is NoneType, not text"),
    ("a.csv", "title,body\nx,y\n", r"no key 'data\.body' among \['body', 'title'\]"),
])  # fmt: skip
def test_every_one_of_several_keys_must_be_there(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words):
        read(tmp_path / name, content, **BOTH)


def test_a_column_too_few_is_named(tmp_path):
    table = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"title": ["x"]}), table)
    with pytest.raises(DataError, match=r"no column 'data\.body' among \['title'\]"):
        read(table, table.read_bytes(), **BOTH)


@pytest.mark.parametrize("keys", ["title,", "title,title", "title,source"])
def test_keys_that_cannot_be_meant_are_refused(tmp_path, keys):
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=f"text_key '{keys}'"):
        prepare(str(tmp_path / "in"), tmp_path / "out", text_key=keys)


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv.gz", "\t")])
def test_tables_are_read_by_column(tmp_path, suffix, mark):
    rows = ["id,text,source", '1,"two\nlines, ""quoted""",a', "2,plain,", "3,   ,b"]
    content = "\ufeff" + "\r\n".join(row.replace(",", mark) for row in rows)
    skipped = Skipped()
    packed = gzip.compress(content.encode()) if suffix.endswith("gz") else content
    found = read(tmp_path / f"t{suffix}", packed, skipped)
    lines = f'two\nlines{mark} "quoted"'
    assert [(d.text, d.source, d.name) for d in found] == [
        (lines, "a", f"t{suffix}:1"),
        ("plain", f"t{suffix}:2", f"t{suffix}:2"),
    ]
    assert skipped.counts == {"empty": 1}


TABLES = {
    "no such column": ("id,body\n1,x\n", "no key 'text' among .*--text_key.*--format text"),
    "a field too many": ("id,text\n1,x\n2,y,z\n", "row 2: 3 fields, but the header names 2"),
    "a stray quote": ('id,text\n1,"x\n2,y\n', "not CSV"),
    "not UTF-8": (b"id,text\n1,x\xff\n", "row 1: the text is not UTF-8"),
    "a long line": ("id,text\n1," + "x" * 200 + "\n", "row 1: the line is longer than max_document_bytes 100"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_faults_of_tables_are_named(tmp_path, fault):
    content, words = TABLES[fault]
    with pytest.raises(DataError, match=words):
        read(tmp_path / "t.csv", content, max_bytes=100)


def test_a_separator_cuts_a_text_file_into_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("monet.data.limits.BLOCK_BYTES", 7)
    stories = ["One day.\nThe end.", "ü" * 20, "Last."]
    content = "\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n"
    assert texts(tmp_path / "a.txt", content, separator="<|endoftext|>") == stories
    assert read(tmp_path / "a.txt", content, separator="<|endoftext|>")[1].source == "a.txt:2"
    skipped = Skipped("skip")
    found = texts(tmp_path / "a.txt", content, skipped, separator="<|endoftext|>", max_bytes=30)
    assert (found, skipped.counts["too long"]) == ([stories[0], stories[2]], 1)
    with pytest.raises(DataError, match="--document_separator"):
        read(tmp_path / "a.txt", content, max_bytes=20)


def test_marks_between_documents_are_reported(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.txt").write_text("a story\n<|endoftext|>\n" * 2)
    shards = prepare(str(tmp_path / "in"), tmp_path / "out", domain="d", vocab_size=260)
    assert "4 plain text file(s) contain <|endoftext|>" in capsys.readouterr().out
    assert "--document_separator" in shards.manifest["notes"][0]


def test_the_ways_of_reading_are_counted(tmp_path):
    for name in ("a.json.gz", "b.txt", "c.md", "d.csv"):
        (tmp_path / name).write_bytes(gzip.compress(LINES.encode()) if name.endswith("gz") else b"words")
    files = [TextFile(tmp_path / name, "d", name) for name in ("a.json.gz", "b.txt", "c.md", "d.csv")]
    assert described(files, "auto", "text") == (
        "files: 2 as plain text (.txt, .md); 1 as JSON lines (.json); 1 as CSV tables (.csv)"
    )
    assert described([], "auto", "text") is None
