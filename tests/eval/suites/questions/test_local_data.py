"""Benchmark data in every documented layout, and refusals."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pytest

from monet.errors import DataError
from monet.eval.suites.questions import local_data
from tests.eval.suites.questions.samples import labelled_rows, mmlu_rows, write_jsonl, write_parquet, write_saved

ROWS = labelled_rows("x", 3)
SPLITS = ["train", "validation", "test"]


def _arrow(path, rows, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)


def _json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


LAYOUTS = {
    "hub clone": lambda root: write_parquet(root / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", ROWS),
    "last part of the name": lambda root: write_jsonl(root / "ai2_arc/ARC-Easy/test.jsonl", ROWS),
    "another name": lambda root: _json(root / "arc/ARC-Easy/test.json", ROWS),
    "our name for the task": lambda root: write_jsonl(root / "arc_easy/test.jsonl", ROWS),
    "arrow stream": lambda root: _arrow(root / "ai2_arc/ARC-Easy/test.arrow", ROWS, "stream"),
    "arrow file": lambda root: _arrow(root / "ai2_arc/ARC-Easy/test.arrow", ROWS, "file"),
    "a split saved to disk": lambda root: write_saved(root / "ai2_arc/ARC-Easy/test", ROWS),
    "all splits saved to disk": lambda root: datasets.DatasetDict(
        {"test": datasets.Dataset.from_list(ROWS)}
    ).save_to_disk(str(root / "ai2_arc/ARC-Easy")),
}


def find(root, config="ARC-Easy"):
    return local_data.find(root, ["allenai/ai2_arc", "ai2_arc", "arc", "arc_easy"], config, SPLITS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = find(tmp_path)
    assert found is not None and list(found.splits) == ["test"]
    rows = local_data.read(found, "test", None)
    assert rows.to_list() == ROWS
    rows.map(lambda row: {"new": row["question"]})  # what the harness does with some data sets
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "the user's data were touched"


def test_parts_of_a_split_are_joined_in_order(tmp_path):
    for part, row in enumerate(ROWS):
        write_jsonl(tmp_path / f"ai2_arc/ARC-Easy/test-0000{part}-of-00003.jsonl", [row])
    assert local_data.read(find(tmp_path), "test", None).to_list() == ROWS


def test_a_configuration_is_never_taken_for_another(tmp_path):
    write_jsonl(tmp_path / "ai2_arc/test.jsonl", ROWS)
    write_jsonl(tmp_path / "ai2_arc/ARC-Challenge/test.jsonl", ROWS)
    assert find(tmp_path) is None


def test_lines_may_hold_any_separator_of_unicode(tmp_path):
    rows = [{**ROWS[0], "question": "one\u2028two\x85three"}]
    path = tmp_path / "arc_easy/test.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(rows[0], ensure_ascii=False) + "\n", encoding="utf-8")
    assert local_data.read(find(tmp_path), "test", None).to_list() == rows


def test_subjects_together_or_apart(tmp_path):
    rows = {subject: mmlu_rows(subject, "test", 2) for subject in ("anatomy", "virology")}
    write_jsonl(tmp_path / "together/mmlu/test.jsonl", [*rows["anatomy"], *rows["virology"]])
    for subject, own in rows.items():
        write_saved(tmp_path / "apart/hails/mmlu_no_train" / subject / "test", own)
    for layout in ("together", "apart"):
        names = ["cais/mmlu", "mmlu", "hails/mmlu_no_train", "mmlu_virology"]
        found = local_data.find(tmp_path / layout, names, "virology", SPLITS, "virology")
        assert local_data.read(found, "test", "virology").to_list() == rows["virology"], layout


@pytest.mark.parametrize("layout", ["a folder", "a column", "a row in another's folder"])
def test_an_unknown_subject_is_refused(layout, tmp_path):
    write_jsonl(tmp_path / "mmlu/anatomy/test.jsonl", mmlu_rows("anatomy", "test", 2))
    if layout == "a folder":
        write_jsonl(tmp_path / "mmlu/astrology/test.jsonl", mmlu_rows("astrology", "test", 2))
    elif layout == "a column":
        (tmp_path / "mmlu/anatomy/test.jsonl").unlink()
        write_jsonl(tmp_path / "mmlu/test.jsonl", [*mmlu_rows("anatomy", "test", 2), *mmlu_rows("astrology", "t", 1)])
    else:
        write_jsonl(tmp_path / "mmlu/anatomy/test.jsonl", mmlu_rows("astrology", "test", 2))
    with pytest.raises(
        DataError, match=r"'astrology' is not one of MMLU's 57 subjects; the most similar are .*astronomy"
    ):
        found = local_data.find(tmp_path, ["cais/mmlu", "mmlu", "mmlu_anatomy"], "anatomy", SPLITS, "anatomy")
        local_data.read(found, "test", "anatomy")


def test_subjects_together_need_their_column(tmp_path):
    write_jsonl(tmp_path / "mmlu/test.jsonl", [{"question": "a", "choices": list("abcd"), "answer": 0}])
    found = local_data.find(tmp_path, ["mmlu"], "anatomy", SPLITS, "anatomy")
    with pytest.raises(DataError, match="no column 'subject'"):
        local_data.read(found, "test", "anatomy")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("test.jsonl", b'{"a": 1}\n{broken\n', "line 2: no JSON"),
        ("test.jsonl", b"[1, 2]\n", "line 1: not a JSON object"),
        ("test.jsonl", b"\xff\xfe\n", "unreadable"),
        ("test.parquet", b"PAR1nothing", "unreadable"),
        ("test.arrow", b"nothing at all", "unreadable"),
    ],
)
def test_damaged_files_are_named(name, content, told, tmp_path):
    folder = tmp_path / "arc_easy"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        local_data.read(find(tmp_path), "test", None)
    assert name in str(error.value)


def test_a_split_in_two_forms_is_refused(tmp_path):
    write_jsonl(tmp_path / "arc_easy/test.jsonl", ROWS)
    write_parquet(tmp_path / "arc_easy/test.parquet", ROWS)
    with pytest.raises(DataError, match=r"test\.jsonl and as test\.parquet"):
        find(tmp_path)


def test_no_folder_and_no_data(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find(tmp_path / "nowhere")
    assert find(tmp_path) is None
