"""What the shards store for each document: its name, and the source that its text names, if any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monet.data.loading.windows import WindowDataset
from monet.data.preparation.prepare import prepare
from monet.data.storage.names import name_line, read_line
from monet.data.storage.shards import TokenShards, dtype_for, write_manifest
from monet.data.storage.writer import ShardWriter
from monet.errors import DataError
from tests.data.samples import EOS, SENTENCES

# Three documents of each domain and split: two from one source, and one from another.
SOURCES = ["book/1", "book/2", "book/1"]


def made(folder: Path, sources: list[str | None]) -> TokenShards:
    """One split with a domain, two documents a shard."""
    writer = ShardWriter(folder / "train" / "a", dtype_for(100), 100, 12)
    for number, source in enumerate(sources):
        writer.add([2 + number] * 5 + [EOS], f"a-{number}", 5, source)
    writer.flush()
    for entry in folder.rglob("shard-*.json"):
        entry.unlink()
    write_manifest(folder, {"train": {"a": writer.entries}}, 100, EOS)
    return TokenShards(folder, full=True)


def sources_of(shards: TokenShards) -> dict[str, list[str | None]]:
    """By document's name, over all splits and domains."""
    found = {}
    for split in shards.splits:
        for domain in shards.domains:
            stream = shards.stream(split, domain)
            documents = range(stream.num_documents)
            sources = stream.document_sources(documents)
            found |= {stream.document_name(number): sources[number] for number in documents}
    return found


def test_names_and_sources_over_several_shards(tmp_path):
    shards = made(tmp_path, [*SOURCES, None])
    stream = shards.stream("train", "a")
    assert len(list(tmp_path.rglob("*.names.jsonl"))) == 2
    assert stream.document_sources([3, 0, 2, 0]) == {0: "book/1", 2: "book/1", 3: None}
    assert [stream.document_name(number) for number in range(4)] == ["a-0", "a-1", "a-2", "a-3"]
    windows = WindowDataset(shards, "train", seq_len=5)
    assert windows.document_sources([3, 1, 0]) == ["book/1", "book/1", "book/1"]
    assert windows.document_sources(range(len(windows)))[1:] == ["book/1", "book/2", "book/1"]


def test_a_folder_without_sources_is_that_of_earlier_versions(tmp_path):
    shards = made(tmp_path / "old", [None] * 3)
    names = (tmp_path / "old/train/a/shard-00000.names.jsonl").read_text()
    assert names == '"a-0"\n"a-1"\n'
    assert "names_sha256" not in (tmp_path / "old/manifest.json").read_text()
    assert shards.stream("train", "a").document_sources(range(3)) == {0: None, 1: None, 2: None}
    # text prepared again with sources is the same text for a run that started without them
    new = made(tmp_path / "new", [*SOURCES])
    assert new.fingerprint == shards.fingerprint
    assert (tmp_path / "new/train/a/shard-00000.names.jsonl").read_text() == '["a-0", "book/1"]\n["a-1", "book/2"]\n'


@pytest.mark.parametrize("source", ["\ud800 half of a pair", "two\nlines\u2028", "日本 🙂", ""])
def test_any_source_comes_back(source, tmp_path):
    line = name_line("name", source)
    assert line.count(b"\n") == 1 and read_line(line, tmp_path) == ("name", source)


@pytest.mark.parametrize("line", [b"", b"{}\n", b'["a"]\n', b'["a", 1]\n', b"\xff\n", b"[" * 100_000])
def test_a_damaged_line_is_refused(line):
    with pytest.raises(DataError, match=r"n\.jsonl: the line .* names no document"):
        read_line(line, Path("n.jsonl"))


def test_which_documents_have_a_source(tmp_path):
    """Records and rows that name one, and whole files; not records without one, and not pieces of a file."""
    text = " ".join(SENTENCES["english"].split() * 3)
    (tmp_path / "in" / "d").mkdir(parents=True)
    folder = tmp_path / "in" / "d"
    records = [{"text": text, "source": f"s{n % 5}"} for n in range(8)] + [
        {"text": text},
        {"text": text, "source": None},
    ]
    (folder / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "t.csv").write_text(f"text,source\n{text},s1\n{text},\n")
    (folder / "p.txt").write_text(text)
    found = sources_of(prepare(str(tmp_path / "in"), tmp_path / "out", vocab_size=300))
    wanted = {f"d/r.jsonl:{n + 1}": f"s{n % 5}" for n in range(8)} | {"d/r.jsonl:9": None, "d/r.jsonl:10": None}
    assert found == wanted | {"d/t.csv:1": "s1", "d/t.csv:2": None, "d/p.txt": "d/p.txt"}
    (folder / "p.txt").write_text(f"{text}<|>{text}")
    cut = prepare(str(tmp_path / "in"), tmp_path / "cut", vocab_size=300, document_separator="<|>")
    assert {name: source for name, source in sources_of(cut).items() if "p.txt" in name} == {
        "d/p.txt:1": None, "d/p.txt:2": None,
    }  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_sources_of_a_dataset(tmp_path, streamed):
    """Also where the rows are fetched to the disk first, which writes a place into records without a source."""
    (tmp_path / "set").mkdir()
    rows = [{"text": f"{SENTENCES['english']} {n}", "source": f"s{n % 6}" if n % 2 else None} for n in range(24)]
    (tmp_path / "set" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uri = {"d": f"hf://{tmp_path}/set"}
    tokenizer = prepare(str(tmp_path / "set"), tmp_path / "t", domain="d", vocab_size=300).tokenizer_dir
    found = sources_of(prepare(uri, tmp_path / "out", tokenizer=str(tokenizer), stream=streamed))
    assert sorted(filter(None, found.values())) == sorted(f"s{n % 6}" for n in range(24) if n % 2)
    assert list(found.values()).count(None) == 12
