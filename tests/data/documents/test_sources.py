"""Files of every kind, and Hugging Face datasets read from local files."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from monet.data import limits
from monet.data.documents import formats, hub
from monet.data.documents.records import read_documents
from monet.data.documents.sources import Skipped, TextFile, find_files
from monet.data.preparation.prepare import prepare
from monet.data.tokens.tokenizer import load_tokenizer
from monet.errors import DataError
from tests.data.samples import files_of, zstandard

PACKED = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard}
RECORDS = '\ufeff{"text": "one", "source": "a"}\n\n{"text": "zwei", "source": 7}\n{"text": "три"}\n{"text": " \\n"}\n'


def read(path: Path, **keys: str) -> list[tuple[str, str, str]]:
    file = TextFile(path, "d", path.name)
    return [(document.text, document.source, document.name) for document in read_documents(file, Skipped(), **keys)]


@pytest.mark.parametrize("suffix", PACKED)
def test_records_and_texts_plain_and_compressed(tmp_path, suffix):
    records, text = tmp_path / f"r.jsonl{suffix}", tmp_path / f"code.py{suffix}"
    records.write_bytes(PACKED[suffix](RECORDS.encode()))
    text.write_bytes(PACKED[suffix]("x = 'é'\n".encode()))
    name = records.name
    assert read(records) == [
        ("one", "a", f"{name}:1"),
        ("zwei", "7", f"{name}:3"),
        ("три", f"{name}:4", f"{name}:4"),
    ]
    assert read(text) == [("x = 'é'\n", text.name, text.name)]


def test_keys_have_any_name(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"body": "x", "id": "i"}\n')
    assert read(path, text_key="body", source_key="id") == [("x", "i", "r.jsonl:1")]


def test_domains_are_folders_and_hidden_files_are_passed_over(tmp_path):
    for name in ("b/x.py", "a/deep/y.md", "a/.git/z", ".hidden/w", "a/x.txt", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    found, loose = find_files(tmp_path)
    assert {domain: [file.name for file in files] for domain, files in found.items()} == {
        "a": ["a/deep/y.md", "a/x.txt"],
        "b": ["b/x.py"],
    }
    assert loose == ["README"]
    assert list(find_files(tmp_path, "all")[0]) == ["all"]
    assert list(find_files(tmp_path / "b" / "x.py")[0]) == ["x"]


def test_names_that_are_no_text(tmp_path):
    """File names and originals can hold bytes that UTF-8 cannot write."""
    folder = tmp_path / "corpus" / "d"
    folder.mkdir(parents=True)
    for number in range(4):
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff%d.txt" % number)).write_text("some text")
    (folder / "r.jsonl").write_text('{"text": "record", "source": "\\ud800"}\n')
    shards = prepare(str(tmp_path / "corpus"), tmp_path / "out", vocab_size=260)
    streams = [shards.stream(split, "d") for split in shards.splits]
    names = [stream.document_name(number) for stream in streams for number in range(stream.num_documents)]
    assert sorted(names) == ["d/\\xff0.txt", "d/\\xff1.txt", "d/\\xff2.txt", "d/\\xff3.txt", "d/r.jsonl:1"]


def half_utf8() -> pyarrow.Array:
    """Two strings of which the second is no UTF-8."""
    offsets = np.array([0, 2, 4], dtype="<i4").tobytes()
    return pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, *map(pyarrow.py_buffer, (offsets, b"ab\xff\xfe"))])


def damaged(content: bytes) -> bytes:
    packed = bytearray(bz2.compress(content))
    packed[30] ^= 255
    return bytes(packed)


FAULTS = {
    "digits by the thousand": ("a.jsonl", b'{"text": "x", "n": %s}\n' % (b"1" * 5000), "a.jsonl:1: not a JSON"),
    "damaged records.bz2": ("a.jsonl.bz2", damaged(b'{"text": "x"}\n' * 99), "broken or truncated archive"),
    "damaged text.bz2": ("a.txt.bz2", damaged(b"some text\n" * 99), "broken or truncated archive"),
    "a source that is no UTF-8": (
        "a.parquet", {"text": ["x", "y"], "source": half_utf8()}, "row 2: byte 0 of its text or source is not UTF-8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_or_counted(tmp_path, fault):
    name, content, words = FAULTS[fault]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        parquet.write_table(pyarrow.table(content), path)
    with pytest.raises(DataError, match=words):
        read(path)
    skipped = Skipped("skip")
    found = list(read_documents(TextFile(path, "d", name), skipped))
    assert (len(found), skipped.counts.total()) == (int(name == "a.parquet"), 1)


def test_a_fault_of_the_disk_is_none_of_the_content(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setitem(formats._OPENERS, ".gz", fail)
    with pytest.raises(OSError, match="Input/output error"):
        list(read_documents(TextFile(tmp_path / "a.txt.gz", "d", "a"), Skipped("skip")))


def test_two_columns_of_one_name(tmp_path):
    table = pyarrow.table([["x"], ["y"]], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: 2 columns are named 'text'; rename one"):
        read(tmp_path / "a.parquet")


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A dataset of two columns and 60 rows, in the form the hub serves."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = [{"body": f"row {number} of the set", "lang": "ab"[number % 3 == 0]} for number in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"hf://{folder}"


def test_a_dataset_with_a_column_of_domains(dataset, tmp_path):
    shards = prepare(dataset, tmp_path / "out", domain_key="lang", text_key="body", vocab_size=262)
    assert shards.domains == ["a", "b"]
    counts = [sum(shards.stream(split, name).num_documents for split in shards.splits) for name in "ab"]
    assert counts == [40, 20]
    assert not list((tmp_path / "out").rglob("part-*"))


@pytest.fixture
def rows_read(monkeypatch) -> list[int]:
    """Numbers of the rows that were read; a row number in `fail_at` breaks the download once."""

    class Watched(hub.Rows):
        def __iter__(self):
            for document in super().__iter__():
                if self.row in fail_at:
                    fail_at.remove(self.row)
                    raise DataError("the network is gone")
                read.append(self.row)
                yield document

    read: list[int] = []
    fail_at: list[int] = []
    Watched.fail_at = fail_at
    monkeypatch.setattr(hub, "Rows", Watched)
    return read


def test_a_dataset_of_one_domain_is_read_no_further_than_needed(dataset, tmp_path, rows_read):
    prepare({"only": dataset}, tmp_path / "out", text_key="body", max_documents=12, vocab_size=262)
    assert rows_read == list(range(1, 13))


def test_a_broken_download_goes_on_where_it_stopped(dataset, tmp_path, monkeypatch, rows_read):
    monkeypatch.setattr(limits, "PART_ROWS", 8)
    hub.Rows.fail_at.append(22)
    arguments = {"domain_key": "lang", "text_key": "body", "vocab_size": 262}
    with pytest.raises(DataError, match="network"):
        prepare(dataset, tmp_path / "broken", **arguments)
    prepare(dataset, tmp_path / "broken", **arguments)
    assert rows_read == [*range(1, 22), *range(17, 61)]
    whole = prepare(dataset, tmp_path / "whole", **arguments)
    assert sum(whole.stream(split, name).num_documents for split in whole.splits for name in "ab") == 60
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


def test_parts_of_a_download_are_small_and_their_lines_may_be_longer_than_the_text(tmp_path, monkeypatch):
    """A text that just fits has more bytes as JSON; and few rows are in memory where they are long."""
    monkeypatch.setattr(limits, "PART_CHARACTERS", 100)
    written = []
    monkeypatch.setattr(hub, "atomic_write_text", lambda path, text: (written.append(text), path.parent.mkdir(
        parents=True, exist_ok=True), path.write_text(text)))  # fmt: skip
    (tmp_path / "set").mkdir()
    texts = ["\n\u20ac" * 10 + str(number) for number in range(10, 40)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "set" / "train.jsonl").write_text("".join(lines))
    source = {"only": f"hf://{tmp_path / 'set'}"}
    shards = prepare(source, tmp_path / "out", vocab_size=262, max_document_bytes=42)
    assert sum(shards.stream(split, "only").num_documents for split in shards.splits) == 30
    assert [part.count("\n") for part in written] == [5] * 6


def test_a_dataset_without_the_column_is_refused(dataset, tmp_path):
    with pytest.raises(DataError, match=r"no column 'text' among \['body', 'lang'\]"):
        prepare({"only": dataset}, tmp_path / "out")


@pytest.mark.parametrize("stream", [False, True])
def test_several_columns_of_a_dataset_are_one_text(dataset, prepared, tmp_path, stream):
    arguments = {"text_key": "lang,body", "tokenizer": str(prepared / "tokenizer"), "stream": stream}
    made = prepare({"only": dataset}, tmp_path / "out", **arguments)
    streams = [made.stream(split, "only") for split in made.splits]
    ids = [token for one in streams if one.num_tokens for token in one.read(0, one.num_tokens).tolist()]
    text = load_tokenizer(str(made.tokenizer_dir)).decode(ids)
    assert "a\n\nrow 4 of the set<eos>" in text and "b\n\nrow 57 of the set<eos>" in text
    assert made.manifest["settings"]["text_key"] == "lang,body"
    with pytest.raises(DataError, match=r"no column 'title' among \['body', 'lang'\]"):
        prepare({"only": dataset}, tmp_path / "other", **{**arguments, "text_key": "title,body"})


def test_linked_folders_are_read_and_loops_are_not(tmp_path):
    for name in ("far/x.txt", "in/a/y.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "in/a/link").symlink_to(tmp_path / "far")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/b").symlink_to(tmp_path / "far")
    found, _ = find_files(tmp_path / "in")
    assert [file.name for file in found["a"]] == ["a/link/x.txt", "a/y.txt"]
    assert [file.name for file in found["b"]] == ["b/x.txt"]
    (tmp_path / "in/b/gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match="gone: a link to a file or folder that does not exist"):
        find_files(tmp_path / "in")
