"""Bounded memory: shards are mapped and not copied, files of any content are read piece by piece."""

from __future__ import annotations

import gzip
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from monet.data.documents.records import read_documents
from monet.data.documents.sources import Skipped, TextFile
from monet.data.loading.windows import WindowDataset
from monet.data.preparation.prepare import prepare
from monet.data.storage.mapped import MappedFiles
from monet.data.storage.shards import TokenShards
from monet.errors import DataError
from monet.files import fsync_path
from tests.data.samples import EOS, make_shards, write_corpus, zstandard

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def test_reads_share_the_memory_of_the_mapped_file(prepared):
    stream = TokenShards(prepared).stream("train", "english")
    whole = stream.shard_ids(0)
    ids = stream.read(3, 40)
    assert isinstance(whole, np.memmap)
    assert whole.mode == "r"
    assert np.shares_memory(ids, whole)
    assert np.shares_memory(stream.read(10, 20), ids)
    assert stream.shard_ids(0) is whole


def test_threads_share_few_mapped_files(tmp_path):
    """Without a lock, threads break the order that the oldest mapping is found by: a KeyError, or a crash of Python."""
    files, dtype = [tmp_path / f"{number}.bin" for number in range(12)], np.dtype("<u2")
    for number, file in enumerate(files):
        np.full(100, number, dtype).tofile(file)
    mapped = MappedFiles(limit=4)

    def read(seed: int) -> bool:
        numbers = np.random.default_rng(seed).integers(0, len(files), 1000)
        return all((mapped(files[number], dtype, 200) == number).all() for number in numbers)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(read, range(16)))
    finally:
        sys.setswitchinterval(interval)


RESIDENT = """
import sys
from pathlib import Path
from monet.data.loading.windows import WindowDataset

def kib(name):
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])

windows = WindowDataset(sys.argv[1], "train", 256)
windows[0]
before = kib("Private_Dirty:"), kib("Anonymous:")
for index in range(0, len(windows), 40):
    windows[index]
after = kib("Private_Dirty:"), kib("Anonymous:")
print(windows.shards.stream("train", "a").num_tokens * 2 // 1024, *(b - a for a, b in zip(before, after)))
"""


def measured(script: str, *words: object) -> list[int]:
    """Numbers that a script prints in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_a_walk_over_all_shards_takes_no_memory_of_its_own(tmp_path):
    """Pages of a mapped file belong to the kernel's cache; what the process owns does not grow with the data."""
    ids = np.resize(np.arange(5, 95), 1_000_000).tolist()
    make_shards(tmp_path, {"train": {"a": [ids] * 8}}, shard_tokens=4_000_000)
    for path in filter(Path.is_file, tmp_path.rglob("shard-*")):
        fsync_path(path)  # pages that are not on the disk yet count as dirty
    size, dirty, anonymous = measured(RESIDENT, tmp_path)
    assert size > 15_000
    assert dirty < 2_000
    assert anonymous < 2_000


def one_line(size: int) -> bytes:
    return b'{"text": "' + b"a" * size + b'"}\n'


def bomb(folder: Path, kind: str, size: int) -> Path:
    """A small file that holds a text of `size` bytes."""
    if kind.endswith("parquet"):
        path = folder / f"bomb.{kind}"
        text = ["a" * size] if kind.startswith("text") else ["word " * 200_000] * (size // 1_000_000)
        # a writer checks the page size only after a number of rows: texts of ordinary length make pages of a megabyte
        rows = 4 if kind == "parquet" else 1024
        table, options = pyarrow.table({"text": text}), {"compression": "zstd", "use_dictionary": False}
        parquet.write_table(table, path, write_batch_size=rows, **options)
        return path
    if kind == "jsonl.zst":
        path = folder / "bomb.jsonl.zst"
        path.write_bytes(zstandard(one_line(size)))
        return path
    path = folder / f"bomb.{kind}"
    with gzip.open(path, "wb", 1) as file:
        file.write(one_line(size) if kind.startswith("jsonl") else b"a" * size)
    return path


PEAK = """
import sys
from pathlib import Path
import pyarrow.parquet
from monet.data.documents.records import read_documents
from monet.data.documents.sources import Skipped, TextFile

def peak():  # not getrusage, which goes on from the parent's
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

before = peak()
path, skipped = Path(sys.argv[1]), Skipped("skip")
count = sum(1 for _ in read_documents(TextFile(path, "d", path.name), skipped, max_bytes=1 << 20))
print(count, skipped.counts["too long"], peak() - before)
"""


@pytest.mark.parametrize("kind", ["txt.gz", "jsonl.gz", "jsonl.zst", "parquet"])
def test_an_archive_that_unpacks_to_much_takes_little_memory(tmp_path, kind):
    path = bomb(tmp_path, kind, 200 * MIB)
    assert path.stat().st_size < 2 * MIB
    count, too_long, kib = measured(PEAK, path)
    # a row group of 200 texts of 1 MB is no fault: it is read page by page
    assert (count, too_long) == ((209, 0) if kind == "parquet" else (0, 1))
    assert kib < 90 * 1024


@pytest.mark.parametrize(("kind", "counts"), [("text.parquet", (0, 1)), ("page.parquet", (104, 0))])
def test_a_table_takes_three_times_its_largest_page(tmp_path, kind, counts):
    """One page of 100 MiB: a single text that is too long, or a hundred that are not."""
    path = bomb(tmp_path, kind, 100 * MIB)
    assert path.stat().st_size < MIB
    count, too_long, kib = measured(PEAK, path)
    assert (count, too_long) == counts
    assert kib < (3 * 100 + 30) * 1024


@pytest.mark.parametrize("kind", ["txt.gz", "jsonl.gz", "jsonl.zst", "parquet"])
def test_what_is_too_long_is_refused_by_name(tmp_path, kind):
    path = bomb(tmp_path, kind, 2 * MIB)
    with pytest.raises(DataError, match=rf"{path.name}.*max_document_bytes 100000; raise the limit.*--on_error skip"):
        list(read_documents(TextFile(path, "d", path.name), Skipped(), max_bytes=100_000))


def test_a_long_line_does_not_hide_the_next(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + one_line(500) + b'{"text": "two"}\n' + one_line(99)[:-1])
    skipped = Skipped("skip")
    documents = read_documents(TextFile(path, "d", "a"), skipped, max_bytes=100)
    assert [(document.text, document.name) for document in documents] == [("one", "a:1"), ("two", "a:3")]
    assert skipped.counts == {"too long": 2}


BROKEN = {
    "truncated": lambda content: content[:-40],
    "overwritten": lambda content: content[:100] + bytes(200) + content[300:],
    "something else": lambda content: b"PAR1 no table" * 9,
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.zst"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = tmp_path / f"a{suffix}"
    lines = [f"line {number * 7919}" for number in range(500)]
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": lines}), path, compression="zstd")
    else:
        path.write_bytes(zstandard("".join(f'{{"text": "{line}"}}\n' for line in lines).encode()))
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    if (suffix, damage) == (".jsonl.zst", "empty"):
        assert list(read_documents(TextFile(path, "d", "a"), Skipped())) == []
        return
    # a zstandard frame without checksum can unpack to other bytes, which then are no records
    with pytest.raises(DataError, match=rf"{path.name}: broken or truncated|{path.name}:1: not a JSON record"):
        list(read_documents(TextFile(path, "d", "a"), Skipped()))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"body": ["x"]}, r"no column 'text' among \['body'\]; name the right one with --text_key"),
        ({"text": [1]}, r"row 1: the value of 'text' is int, not text"),
        ({"text": ["x", None]}, r"row 2: the value of 'text' is NoneType, not text"),
    ],
)
def test_tables_without_text(tmp_path, table, reason):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(DataError, match=reason):
        list(read_documents(TextFile(path, "d", "a"), Skipped()))


def test_empty_documents_are_left_out_and_counted(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", originals=8, parts=1, words=10)
    (corpus / "python" / "blank.jsonl").write_text('{"text": ""}\n{"text": " \\n\\t"}\n')
    parquet.write_table(pyarrow.table({"text": ["", "\u2003", "words"]}), corpus / "python" / "blank.parquet")
    shards = prepare(str(corpus), tmp_path / "out", vocab_size=270)
    assert shards.manifest["skipped"]["counts"] == {"empty": 4}
    lengths = np.diff(shards.stream("train", "python").document_starts())
    assert lengths.min() > 1


def test_documents_longer_than_a_window_and_a_shard_are_whole(tmp_path):
    make_shards(tmp_path, {"train": {"a": [list(range(2, 90)), [5]]}}, shard_tokens=20)
    windows = WindowDataset(tmp_path, "train", 10)
    ids = np.concatenate([windows[index]["input_ids"].numpy()[:-1] for index in range(len(windows))])
    assert ids.tolist() == [*range(2, 90), EOS, 5][: len(ids)]
    assert windows.shards.manifest["splits"]["train"]["a"]["shards"][0]["tokens"] == 89
