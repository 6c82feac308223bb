"""Bad text, settings and prepared data: each is refused with an error that names the value."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.windows import WindowDataset
from monet.data.preparation.prepare import prepare
from monet.data.storage.shards import TokenShards, fingerprint_of
from monet.errors import ConfigError, DataError
from tests.data.samples import EOS, make_shards, write_corpus


class Bad(NamedTuple):
    """One row: `spoil` damages a good input below `folder`, `call` must then raise `error` naming all of `words`."""

    name: str
    spoil: Callable[[Path], Any]
    call: Callable[[Path], Any]
    error: type[Exception]
    words: tuple[str, ...]


def ok(folder: Path) -> None:
    """Leave the good input unchanged."""


def prepared(**changes: Any) -> Callable[[Path], Any]:
    settings: dict[str, Any] = {"vocab_size": 270}
    return lambda folder: prepare(
        changes.get("source", str(folder / "corpus")),
        folder / "out",
        **(settings | {key: value for key, value in changes.items() if key != "source"}),
    )


def write(name: str, content: str | bytes) -> Callable[[Path], Any]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "corpus" / name).write_bytes(data)


TEXT = [
    Bad("source missing", ok, prepared(source="no/such/place"), DataError, ("no/such/place", "hf://")),
    Bad(
        "no domain folders",
        lambda folder: [shutil.rmtree(path) for path in (folder / "corpus").iterdir()],
        prepared(),
        DataError,
        ("corpus", "no domains", "--domain"),
    ),
    Bad(
        "empty domain",
        lambda folder: (folder / "corpus" / "void").mkdir(),
        prepared(),
        DataError,
        ("'void'", "no document", "--on_error skip"),
    ),
    Bad("not UTF-8", write("python/a.py", b"x = 1 \xff\xfe"), prepared(), DataError, ("a.py", "byte 6", "0xff")),
    Bad("binary", write("python/a.py", "a\0b"), prepared(), DataError, ("a.py", "NUL at character 1")),
    Bad("not JSON", write("python/a.jsonl", '{"text": "x"}\n{"text"\n'), prepared(), DataError, ("a.jsonl:2", "JSON")),
    Bad(
        "no text key",
        write("python/a.jsonl", '{"content": "x"}\n'),
        prepared(),
        DataError,
        ("a.jsonl:1", "'text'", "'content'", "--text_key"),
    ),
    Bad("text of another type", write("python/a.jsonl", '{"text": 7}\n'), prepared(), DataError, ("a.jsonl:1", "int")),
    Bad("record no object", write("python/a.jsonl", "[1]\n"), prepared(), DataError, ("a.jsonl:1", "list")),
    Bad(
        "half a surrogate pair",
        write("python/a.jsonl", '{"text": "ab\\ud800"}\n'),
        prepared(),
        DataError,
        ("a.jsonl:1", "character 2", "surrogate"),
    ),
    Bad(
        "truncated xz",
        write("python/a.txt.xz", lzma.compress(b"text " * 999)[:-20]),
        prepared(),
        DataError,
        ("a.txt.xz", "truncated"),
    ),
    Bad(
        "truncated gz records",
        write("python/a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9)[:-9]),
        prepared(),
        DataError,
        ("a.jsonl.gz", "truncated", "after line"),
    ),
    Bad(
        "fewer originals than splits",
        lambda folder: write_lines(folder / "corpus" / "python" / "part-00.jsonl", 3),
        prepared(),
        DataError,
        ("'python'", "3 originals", "4 splits"),
    ),
    Bad("hidden domain name", ok, prepared(source={"../up": "x"}), DataError, ("'../up'", "folder's name")),
    Bad("domain without column", ok, prepared(source="hf://a/b"), ConfigError, ("hf://a/b", "--domain_key")),
    Bad(
        "unknown data set option",
        ok,
        prepared(source="hf://a/b?splt=x", domain="d"),
        ConfigError,
        ("'splt'", "config, split, revision"),
    ),
    Bad(
        "data set that is not there",
        ok,
        prepared(source="hf://./none", domain="d"),
        DataError,
        ("hf://./none", "cannot be opened"),
    ),
]


def write_lines(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"text": "word", "source": str(n)}) + "\n" for n in range(count)))


SETTINGS = [
    Bad("vocabulary below the bytes", ok, prepared(vocab_size=258), ConfigError, ("258", "259")),
    Bad("vocabulary above the text", ok, prepared(vocab_size=50000), DataError, ("50000", "add text")),
    Bad("shares", ok, prepared(splits={"train": 0.5, "evaluate": 0.4}), ConfigError, ("0.9", "add up to 1")),
    Bad("unknown split", ok, prepared(splits={"train": 0.5, "test": 0.5}), ConfigError, ("'test'", "identify")),
    Bad("no training share", ok, prepared(splits={"evaluate": 1.0}), ConfigError, ("'train'",)),
    Bad("negative share", ok, prepared(splits={"train": 1.5, "evaluate": -0.5}), ConfigError, ("1.5", "'train'")),
    Bad("no documents", ok, prepared(max_documents=0), ConfigError, ("max_documents 0", "at least 1")),
    Bad("no shard", ok, prepared(shard_tokens=0), ConfigError, ("shard_tokens 0", "at least 1")),
    Bad("keys that collide", ok, prepared(text_key="source"), ConfigError, ("'source'", "different keys")),
    Bad("tokenizer missing", ok, prepared(tokenizer="no/tokenizer"), DataError, ("'no/tokenizer'", "tokenizer.json")),
    Bad(
        "tokenizer damaged",
        lambda folder: [(folder / "tok").mkdir(), (folder / "tok" / "tokenizer.json").write_text("{}")],
        lambda folder: prepared(tokenizer=str(folder / "tok"))(folder),
        DataError,
        ("tok", "cannot be loaded"),
    ),
    Bad(
        "something else in the way",
        lambda folder: [(folder / "out").mkdir(), (folder / "out" / "thesis.txt").write_text("mine")],
        prepared(overwrite=True),
        DataError,
        ("out", "manifest.json", "--out"),
    ),
]

SHARD = "data/train/a/shard-00000"


def edit_ids(place: int, value: int) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        ids = np.memmap(folder / f"{SHARD}.bin", dtype="<u2", mode="r+")
        ids[place] = value
        ids.flush()

    return spoil


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        path = folder / "data" / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return spoil


def opened(folder: Path) -> Any:
    return TokenShards(folder / "data")


def opened_fully(folder: Path) -> Any:
    return TokenShards(folder / "data", full=True)


def data(**changes: Any) -> Callable[[Path], Any]:
    def call(folder: Path) -> None:
        module = MonetDataModule(str(folder / "data"), **({"seq_len": 4, "batch_size": 2} | changes))
        module.prepare_data()
        module.setup("fit")
        next(iter(module.train_dataloader()))
        next(iter(module.val_dataloader()))

    return call


SHARDS = [
    Bad("nothing prepared", lambda folder: shutil.rmtree(folder / "data"), opened, DataError, ("data", "monet data")),
    Bad(
        "no manifest",
        lambda folder: (folder / "data" / "manifest.json").unlink(),
        opened,
        DataError,
        ("no manifest.json", "monet data prepare"),
    ),
    Bad(
        "manifest cut off",
        lambda folder: (folder / "data" / "manifest.json").write_text('{"format": 1, "dty'),
        opened,
        DataError,
        ("manifest.json", "no JSON"),
    ),
    Bad("later format", edit_manifest(lambda m: m.update(format=9)), opened, DataError, ("format 9", "1")),
    Bad("edited manifest", edit_manifest(lambda m: m.update(vocab_size=200)), opened, DataError, ("fingerprint",)),
    Bad(
        "shard missing",
        lambda folder: (folder / f"{SHARD}.bin").unlink(),
        opened,
        DataError,
        ("a/shard-00000.bin", "missing"),
    ),
    Bad(
        "domain missing",
        lambda folder: shutil.rmtree(folder / "data" / "train" / "a"),
        opened,
        DataError,
        ("a/shard-00000.bin", "missing"),
    ),
    Bad(
        "shard truncated",
        lambda folder: (folder / f"{SHARD}.bin").write_bytes((folder / f"{SHARD}.bin").read_bytes()[:-6]),
        opened,
        DataError,
        ("a/shard-00000.bin", "36 bytes", "42"),
    ),
    Bad(
        "foreign shard",
        lambda folder: shutil.copy(folder / f"{SHARD}.bin", folder / "data/train/a/shard-00007.bin"),
        opened,
        DataError,
        ("shard-00007.bin", "not in the manifest"),
    ),
    Bad(
        "shard of another dtype",
        lambda folder: (folder / f"{SHARD}.bin").write_bytes(np.arange(20, 30.5, 1, "<u4").tobytes()[:42]),
        opened,
        DataError,
        ("a/shard-00000.bin", "end-of-text", "dtype"),
    ),
    Bad(
        "dtype in an entry",
        edit_manifest(lambda m: m["splits"]["train"]["a"]["shards"][0].update(dtype="uint32")),
        opened,
        DataError,
        ("a/shard-00000.bin", "uint32", "uint16"),
    ),
    Bad("one id changed", edit_ids(2, 99), opened_fully, DataError, ("a/shard-00000.bin", "SHA-256")),
    Bad(
        "id beyond the vocabulary, read",
        edit_ids(2, 4000),
        lambda folder: WindowDataset(folder / "data", "train", 4)[0],
        DataError,
        ("a/shard-00000.bin", "id 4000", "token 2", "vocabulary of 100"),
    ),
    Bad(
        "offsets damaged",
        lambda folder: (folder / f"{SHARD}.offsets").write_bytes(np.arange(4, dtype="<u8").tobytes()),
        opened,
        DataError,
        ("shard-00000.offsets", "21 ids"),
    ),
    Bad("unknown split", ok, lambda f: WindowDataset(f / "data", "test", 4), DataError, ("'test'", "validation")),
    Bad("unknown domain", ok, lambda f: WindowDataset(f / "data", "train", 4, ["x"]), DataError, ("'x'", "a, b")),
    Bad("window longer than the text", ok, data(seq_len=500), DataError, ("500", "'train'", "'a'")),
    Bad("seq_len", ok, data(seq_len=0), ConfigError, ("seq_len 0", "at least 1")),
    Bad("batch_size", ok, data(batch_size=0), ConfigError, ("batch_size 0", "at least 1")),
    Bad("num_workers", ok, data(num_workers=-1), ConfigError, ("num_workers -1", "at least 0")),
    Bad("max_val_windows", ok, data(max_val_windows=0), ConfigError, ("max_val_windows 0", "at least 1")),
    Bad("mixture of an unknown domain", ok, data(mixture={"c": 1}), ConfigError, ("'c'", "a, b")),
    Bad("mixture too small", ok, data(mixture={"a": 1, "b": 1e-9}), ConfigError, ("'b'", "1e-09", "4096")),
    Bad(
        "no data and no source",
        lambda folder: shutil.rmtree(folder / "data"),
        data(),
        DataError,
        ("data", "no prepared data", "source"),
    ),
    Bad(
        "unknown key of the preparation",
        lambda folder: [(folder / "p.yaml").write_text("source: x\nvocabsize: 3\n"), shutil.rmtree(folder / "data")],
        lambda folder: data(prepare_config=str(folder / "p.yaml"))(folder),
        ConfigError,
        ("vocabsize",),
    ),
    Bad(
        "preparation's file missing",
        ok,
        lambda folder: data(prepare_config=str(folder / "none.yaml"))(folder),
        ConfigError,
        ("none.yaml", "cannot be read"),
    ),
]


def check(row: Bad, folder: Path) -> None:
    row.spoil(folder)
    with pytest.raises(row.error) as caught:
        row.call(folder)
    message = str(caught.value)
    assert [word for word in row.words if word not in message] == [], message


@pytest.mark.parametrize("row", TEXT + SETTINGS, ids=lambda row: row.name)
def test_bad_text_and_settings(row, tmp_path):
    write_corpus(tmp_path / "corpus", originals=8, parts=1, words=10)
    check(row, tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("row", SHARDS, ids=lambda row: row.name)
def test_bad_prepared_data(row, tmp_path):
    documents = [[number + 5, 7, 8, 9, 10, 11] for number in range(3)]
    part = {"a": documents, "b": documents}
    make_shards(tmp_path / "data", {"train": part, "validation": part}, vocab_size=100)
    TokenShards(tmp_path / "data", full=True)
    check(row, tmp_path)


def test_a_full_check_looks_at_ids_and_not_only_at_hashes(tmp_path):
    folder = make_shards(tmp_path / "data", {"train": {"a": [[2, 3, 70], [5]]}}, vocab_size=100)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["vocab_size"] = 60
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    TokenShards(folder)
    with pytest.raises(DataError, match=r"shard-00000\.bin: id 70 at token 2 is outside the vocabulary of 60"):
        TokenShards(folder, full=True)


def test_a_writer_refuses_an_id_beyond_the_vocabulary(tmp_path):
    with pytest.raises(DataError, match=r"a-1: token id 100 at token 1 is outside the vocabulary of 100"):
        make_shards(tmp_path / "data", {"train": {"a": [[2, EOS], [3, 100]]}}, vocab_size=100)
