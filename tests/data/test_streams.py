"""Large sources: the files of FineWeb-Edu and StarCoderData, read once, on several processes, killed and restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from jsonargparse import ArgumentParser
from pyarrow import parquet
from transformers import AutoTokenizer

from monet.data import limits
from monet.data.documents import hub
from monet.data.documents.sources import Skipped, identities_of, inventory
from monet.data.preparation.prepare import prepare
from monet.data.storage.shards import TokenShards
from monet.data.tokens import encode
from monet.errors import ConfigError, DataError
from tests.data.samples import files_of, zstandard
from tests.marks import nightly

ROOT = Path(__file__).parents[2]
LANGUAGES = ("lua", "python")


def web_row(number: int) -> dict[str, Any]:
    """A row with the columns of FineWeb-Edu; each page was crawled twice."""
    return {
        "text": f"Page {number} tells about rivers, bridges and " + "bread " * (number % 7) + f"in {1900 + number}.",
        "id": f"<urn:uuid:{number}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://example.org/{number // 2}",
        "file_path": "s3://commoncrawl/x.warc.gz",
        "language": "en",
        "language_score": 0.9,
        "token_count": 12,
        "score": 3.1,
        "int_score": 3,
    }


def code_row(language: str, number: int) -> dict[str, Any]:
    """A row with the columns of StarCoderData."""
    return {
        "max_stars_repo_path": f"src/{number}.{language}",
        "max_stars_repo_name": f"owner/{language}-{number // 3}",
        "max_stars_count": number,
        "id": str(number),
        "content": f"<filename>{number}.{language}\nprint({number})  -- {language}\n" * (1 + number % 4),
    }


def write_table(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 80 rows with small row groups, as `hf download` leaves them."""
    folder = tmp_path_factory.mktemp("web")
    for part in range(3):
        rows = [web_row(number) for number in range(80 * part, 80 * part + 80)]
        write_table(folder / f"{part:03d}_00000.parquet", rows, row_group_size=25, compression="zstd")
    return folder


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for language in LANGUAGES:
        write_table(folder / language / "train-00000-of-00001.parquet", [code_row(language, n) for n in range(90)])
    return folder


@pytest.fixture(scope="session")
def tokenizer(web: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("tokenizer") / "data"
    return str(prepare({"web": str(web)}, out, vocab_size=300).tokenizer_dir)


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    """Settings of a configuration that comes with the code, for a small source and shards of a few documents."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(prepare, as_positional=False)
    settings = parser.parse_path(ROOT / "configs" / "data" / f"{name}.yaml").as_dict()
    return settings | {"processes": 1, "shard_tokens": 300, "splits": {"train": 0.8, "validation": 0.2}} | changes


def documents(shards: TokenShards, split: str, domain: str) -> list[tuple[str, list[int]]]:
    stream = shards.stream(split, domain)
    starts = stream.document_starts().tolist()
    return [
        (stream.document_name(number), stream.read(starts[number], starts[number + 1]).tolist())
        for number in range(stream.num_documents)
    ]


def ids_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if name.endswith((".bin", ".offsets"))}


@pytest.mark.parametrize("streamed", [True, False], ids=["hub", "files"])
def test_every_page_is_there_once_and_crawls_of_one_page_stay_together(web, tokenizer, tmp_path, streamed):
    source = {"web": f"hf://{web}" if streamed else str(web)}
    shards = prepare(**shipped("fineweb_edu", source=source, out=tmp_path / "out", tokenizer=tokenizer))
    text = AutoTokenizer.from_pretrained(tokenizer)
    found: dict[str, list[str]] = {
        split: [text.decode(ids[:-1]) for _, ids in documents(shards, split, "web")] for split in shards.splits
    }
    wanted = {web_row(number)["text"]: web_row(number)["url"] for number in range(240)}
    assert sorted(found["train"] + found["validation"]) == sorted(wanted)
    assert not {wanted[line] for line in found["train"]} & {wanted[line] for line in found["validation"]}
    assert 20 < len(found["validation"]) < 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_languages_are_folders_of_one_dataset(code, tokenizer, tmp_path):
    source = {language: f"hf://{code}?data_dir={language}" for language in LANGUAGES}
    streamed = prepare(**shipped("starcoder", source=source, out=tmp_path / "out", tokenizer=tokenizer))
    assert streamed.domains == sorted(LANGUAGES)
    assert sum(streamed.stream(split, "lua").num_documents for split in streamed.splits) == 90
    local = prepare(**shipped("starcoder", source=str(code), out=tmp_path / "local", tokenizer=tokenizer))
    assert ids_of(tmp_path / "out") == ids_of(tmp_path / "local")
    assert local.fingerprint != streamed.fingerprint  # names of documents say where they were read


def test_processes_and_passes_do_not_change_a_token(web, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BATCH_DOCUMENTS", 7)
    (tmp_path / "text" / "web").mkdir(parents=True)
    lines = [json.dumps(web_row(number)).encode() + b"\n" for number in range(240)]
    frames = zstandard(b"".join(lines[:100])) + zstandard(b"".join(lines[100:]))
    (tmp_path / "text" / "web" / "a.jsonl.zst").write_bytes(frames)
    made = []
    for source, stream, processes in [
        (str(tmp_path / "text"), True, 1),
        (str(tmp_path / "text"), True, 3),
        (str(tmp_path / "text"), False, 2),
        ({"web": str(web)}, True, 2),
        ({"web": f"hf://{web}"}, False, 2),
    ]:
        out = tmp_path / str(len(made))
        settings = shipped("fineweb_edu", source=source, out=out, tokenizer=tokenizer, stream=stream)
        shards = prepare(**(settings | {"processes": processes}))
        made.append(ids_of(out))
        assert shards.manifest["throughput"]["processes"] == processes
        assert shards.manifest["throughput"]["tokens"] > 2000
        assert shards.manifest["throughput"]["tokens_per_second"] > 0
    assert all(found == made[0] for found in made)
    assert len(made[0]) > 20


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import monet.data.preparation.prepare, datasets, tokenizers
from monet.data import limits
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # once, not in each child
source, tokenizer, folder, seed = sys.argv[1:]
limits.BATCH_DOCUMENTS, limits.KEEP_SECONDS = 3, 0.0
progress = Path(folder, "broken.partial", "progress.json")

def run(name, processes):
    monet.data.preparation.prepare.prepare(
        {"web": source}, Path(folder, name), tokenizer=tokenizer, source_key="url", stream=True, shard_tokens=300,
        processes=processes, on_error="skip", splits={"train": 0.8, "validation": 0.2},
    )

def written():
    try:
        return json.loads(progress.read_text())["documents"]
    except FileNotFoundError:
        return 0

def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

for goal in sorted(random.Random(seed).sample(range(1, 200), 4)):
    child = os.fork()
    if child == 0:
        run("broken", 2)
        os._exit(3)
    while written() < goal:
        time.sleep(0.001)
    helpers = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "finished before it was killed"
    assert not Path(folder, "broken").exists()
    print("killed with", written())
    assert len(helpers) == 2
    for _ in range(1000):
        if not any(map(alive, helpers)):
            break
        time.sleep(0.01)
    else:
        raise AssertionError("tokenising processes outlived the one that started them")
run("broken", 2)
run("whole", 1)
"""


@pytest.mark.parametrize("seed", [0, *(nightly(seed) for seed in (1, 2))])
def test_kill_9_loses_and_repeats_no_document(web, tokenizer, tmp_path, seed):
    folder = tmp_path / "source"
    folder.mkdir()
    for path in web.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_table(folder / "001_bad.parquet", [{"text": None, "url": "x"}, {"text": " ", "url": "y"}] * 20)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, f"hf://{folder}", tokenizer, str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    kept = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("killed with")]
    assert kept == sorted(kept)
    assert len(kept) == 4
    assert kept[0] > 0
    whole, broken = files_of(tmp_path / "whole"), files_of(tmp_path / "broken")
    assert broken == whole
    shards = TokenShards(tmp_path / "broken", full=True)
    assert shards.manifest["skipped"]["counts"] == {"empty": 20, "no text": 20}
    names = [name for split in shards.splits for name, _ in documents(shards, split, "web")]
    assert len(set(names)) == len(names) == 240
    assert shards.manifest["throughput"]["tokens"] == sum(
        shards.manifest["splits"][split]["web"]["tokens"] for split in shards.splits
    )


def test_a_restart_does_not_read_again_what_is_written(web, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BATCH_DOCUMENTS", 10)
    monkeypatch.setattr(limits, "KEEP_SECONDS", 0.0)
    rows: list[int] = []

    class Counted(hub.Rows):
        def __iter__(self):
            for document in super().__iter__():
                rows.append(self.row)
                if len(rows) == 156:
                    raise KeyboardInterrupt
                yield document

    monkeypatch.setattr(hub, "Rows", Counted)
    settings = shipped("fineweb_edu", source={"web": f"hf://{web}"}, out=tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(KeyboardInterrupt):
        prepare(**settings)
    prepare(**settings)
    assert rows == [*range(1, 157), *range(151, 241)]


def test_a_tokenising_process_that_is_killed_ends_the_work_with_its_reason(web, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BATCH_DOCUMENTS", 5)
    started: list[Any] = []

    class Mortal(encode.Worker):
        def __init__(self, encoder):
            super().__init__(encoder)
            started.append(self._process)
            if len(started) == 2:
                threading.Timer(0.2, lambda: os.kill(self._process.pid, signal.SIGSTOP)).start()
                threading.Timer(0.4, lambda: os.kill(self._process.pid, signal.SIGKILL)).start()

        def __call__(self, texts):
            time.sleep(0.02)
            return super().__call__(texts)

    monkeypatch.setattr(encode, "Worker", Mortal)
    settings = shipped("fineweb_edu", source={"web": str(web)}, out=tmp_path / "out", tokenizer=tokenizer, processes=2)
    with pytest.raises(
        DataError, match=r"tokenising process \d+ ended early with status -9.*run the same command again"
    ):
        prepare(**settings)
    assert [process.poll() for process in started] == [-9, -9]
    monkeypatch.undo()
    prepare(**settings)


def test_what_does_not_exist_is_found_before_any_work(code, tokenizer, tmp_path):
    source = {"lua": f"hf://{code}?data_dir=lua", "zig": f"hf://{code}?data_dir=zig"}
    with pytest.raises(DataError, match=r"data_dir=zig: cannot be opened"):
        prepare(**shipped("starcoder", source=source, out=tmp_path / "out", tokenizer=tokenizer))
    assert not list((tmp_path / "out.partial").rglob("*.bin"))


def test_a_stream_needs_a_tokenizer(web, tmp_path):
    with pytest.raises(ConfigError, match=r"stream reads the text once.*--tokenizer"):
        prepare({"web": str(web)}, tmp_path / "out", stream=True)


def test_a_domain_of_one_document_has_an_empty_split(web, code, tokenizer, tmp_path):
    """In one pass nothing can be moved; the empty stream is there, checked, and says what it lacks when it is read."""
    write_table(tmp_path / "few" / "a.parquet", [code_row("lua", 0)])
    source = {"few": str(tmp_path / "few"), "web": str(web)}
    settings = shipped("starcoder", source=source, out=tmp_path / "out", tokenizer=tokenizer, source_key="id")
    (tmp_path / "web").mkdir()
    rows = [{"content": web_row(number)["text"], "id": str(number)} for number in range(200)]
    write_table(tmp_path / "web" / "a.parquet", rows)
    prepare(**(settings | {"source": source | {"web": str(tmp_path / "web")}}))
    shards = TokenShards(tmp_path / "out", full=True)
    counts = sorted(shards.stream(split, "few").num_documents for split in shards.splits)
    assert counts == [0, 1]
    empty = next(split for split in shards.splits if not shards.stream(split, "few").num_documents)
    assert shards.stream(empty, "few").num_tokens == 0
    assert shards.stream(empty, "few").document_starts().tolist() == [0]
    (tmp_path / "out" / empty / "few").rmdir()  # a copy can leave empty folders behind
    assert TokenShards(tmp_path / "out", full=True).fingerprint == shards.fingerprint


def test_a_dataset_is_read_at_the_commit_it_had_at_the_first_start(monkeypatch):
    class Api:
        def dataset_info(self, name, revision, timeout):
            assert (name, revision) == ("a/b", "main")
            return type("Info", (), {"sha": "0123abcd"})()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert hub.commit_of("hf://a/b?config=c&revision=main") == "0123abcd"
    asked: list[Any] = []

    def load(name, **options):
        asked.append((name, options["revision"]))
        raise OSError("offline")

    monkeypatch.setattr("datasets.load_dataset", load)
    keys: dict[str, Any] = {"domain": "d", "domain_key": None, "text_key": "text", "source_key": "id"}
    with pytest.raises(DataError, match=r"hf://a/b: cannot be opened \(offline\)"):
        hub.Rows("hf://a/b", Skipped(), commit="0123abcd", **keys)
    assert asked == [("a/b", "0123abcd")]


def test_large_files_are_known_by_samples(tmp_path, monkeypatch):
    from monet.data import limits
    from monet.data.documents import sources

    monkeypatch.setattr(limits, "HASHED_WHOLE_BYTES", 1000)
    monkeypatch.setattr(limits, "HASHED_SAMPLE_BYTES", 4)
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(2000))

    def identity() -> str:
        return inventory(identities_of({"a": [sources.TextFile(path, "a", "a.txt")]}))["a"]["sha256"]

    before = identity()
    for place in (0, 1999):
        changed = bytearray(2000)
        changed[place] = 1
        path.write_bytes(changed)
        assert identity() != before
    path.write_bytes(bytes(2001))
    assert identity() != before
