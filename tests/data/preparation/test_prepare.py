"""Preparation: disjoint splits, no work or refusal on a second run, and restart after a real kill."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from transformers import AutoTokenizer

from monet.data import limits
from monet.data.documents.splits import DEFAULT_SHARES, SPLITS, SplitPlan, check_shares
from monet.data.preparation import pipeline
from monet.data.preparation.prepare import prepare
from monet.data.storage.shards import TokenShards
from monet.data.tokens.tokenizer import train_tokenizer
from monet.errors import ConfigError, DataError
from tests.data.samples import SENTENCES, files_of, write_corpus


def test_every_document_is_there_once_and_reads_as_it_was(corpus, prepared):
    shards = TokenShards(prepared, full=True)
    assert shards.splits == list(SPLITS)
    assert shards.domains == sorted(SENTENCES)
    tokenizer = AutoTokenizer.from_pretrained(shards.tokenizer_dir)
    for domain in shards.domains:
        lines = (corpus / domain / "part-00.jsonl").read_text(encoding="utf-8").splitlines()
        found = []
        for split in shards.splits:
            stream = shards.stream(split, domain)
            starts = stream.document_starts()
            assert len(starts) == stream.num_documents + 1
            for number in range(stream.num_documents):
                ids = stream.read(int(starts[number]), int(starts[number + 1])).tolist()
                assert ids[-1] == shards.eos_id
                assert shards.eos_id not in ids[:-1]
                assert stream.document_at(int(starts[number])) == number
                line = int(stream.document_name(number).rpartition(":")[2])
                assert json.loads(lines[line - 1])["text"] == tokenizer.decode(ids[:-1])
                found.append(line)
        assert sorted(found) == list(range(1, len(lines) + 1))


def test_parts_of_one_original_stay_in_one_split(corpus, prepared):
    shards = TokenShards(prepared)
    home: dict[str, str] = {}
    for domain in shards.domains:
        lines = (corpus / domain / "part-00.jsonl").read_text(encoding="utf-8").splitlines()
        for split in shards.splits:
            stream = shards.stream(split, domain)
            for number in range(stream.num_documents):
                line = int(stream.document_name(number).rpartition(":")[2])
                assert home.setdefault(json.loads(lines[line - 1])["source"], split) == split
    assert len(home) == 90


def test_shares_are_kept_and_no_split_stays_empty():
    plan = SplitPlan({"train": 0.8, "validation": 0.04, "identify": 0.08, "evaluate": 0.08}, seed=0)
    splits = [plan.split_of(f"original {number}") for number in range(20000)]
    assert [round(splits.count(name) / 20000, 2) for name in SPLITS] == [0.80, 0.04, 0.08, 0.08]
    other = SplitPlan(plan.shares, seed=1)
    agreeing = [other.split_of(f"original {number}") == split for number, split in enumerate(splits)]
    assert sum(agreeing) / 20000 == pytest.approx(0.8**2 + 0.04**2 + 2 * 0.08**2, abs=0.02)
    for number in range(40):
        places = {"few": [plan.hash_of(f"{number}/{part}") for part in range(4)]}
        plan.moved.clear()
        plan.fill(places)
        assert {plan.split_of_hash(place) for place in places["few"]} == set(SPLITS)


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_demo_settings_name_every_key_and_can_be_parsed():
    path = Path(__file__).parents[3] / "configs" / "data" / "demo.yaml"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(prepare, as_positional=False)
    settings = parser.parse_path(path, defaults=False).as_dict()
    assert settings.keys() == inspect.signature(prepare).parameters.keys()
    assert check_shares(settings["splits"]) == DEFAULT_SHARES


def test_a_second_run_changes_nothing(corpus, tmp_path, capsys):
    out = tmp_path / "data"
    first = prepare(str(corpus), out, vocab_size=270)
    before = times_of(out)
    capsys.readouterr()
    assert prepare(str(corpus), out, vocab_size=270).fingerprint == first.fingerprint
    assert "nothing to do" in capsys.readouterr().out
    assert times_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_other_settings_or_text_are_refused_and_replaced_only_when_asked(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", originals=12)
    out = tmp_path / "data"
    prepare(str(corpus), out, vocab_size=270)
    before = files_of(out)
    with pytest.raises(ConfigError, match=r"seed: 0 there, 7 requested.*--overwrite"):
        prepare(str(corpus), out, vocab_size=270, seed=7)
    (corpus / "python" / "more.txt").write_text("print(1)\n")
    with pytest.raises(ConfigError, match=r"text\.python\.files: 1 there, 2 requested"):
        prepare(str(corpus), out, vocab_size=270)
    assert files_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "data"]
    prepare(str(corpus), out, vocab_size=270, overwrite=True)
    assert TokenShards(out).manifest["splits"]["train"]["python"]["documents"] > 0
    assert files_of(out) != before


def test_unreadable_items_are_skipped_and_counted_when_asked(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus", originals=12)
    (corpus / "python" / "image.png").write_bytes(b"\x89PNG\x0d\xff\xfe")
    (corpus / "python" / "bad.jsonl").write_text('{"text": "kept"}\n{"txt": "lost"}\nnot json\n')
    (corpus / "python" / "empty.py").write_text("\n")
    (corpus / "void").mkdir()
    (corpus / "LICENSE").write_text("loose")
    shards = prepare(str(corpus), tmp_path / "data", vocab_size=270, on_error="skip")
    assert shards.domains == sorted(SENTENCES)
    counts = {"empty": 1, "empty domain": 1, "no text": 1, "not JSON": 1, "undecodable": 1}
    assert shards.manifest["skipped"]["counts"] == counts
    printed = capsys.readouterr().out
    for word in ("image.png", "bad.jsonl:2", "bad.jsonl:3", "'void'", "LICENSE", "left out, undecodable: 1"):
        assert word in printed


def test_the_tokenizer_sees_training_text_only_and_equally_much_of_each_domain(corpus, tmp_path, monkeypatch):
    seen: list[str] = []

    def spy(texts, vocab_size):
        seen.extend(texts)
        return train_tokenizer(seen, vocab_size)

    monkeypatch.setattr(pipeline, "train_tokenizer", spy)
    shards = prepare(str(corpus), tmp_path / "data", vocab_size=262, tokenizer_bytes=3000)
    expected = []
    for domain in shards.domains:
        lines = (corpus / domain / "part-00.jsonl").read_text(encoding="utf-8").splitlines()
        stream, taken = shards.stream("train", domain), 0
        for number in range(stream.num_documents):
            text = json.loads(lines[int(stream.document_name(number).rpartition(":")[2]) - 1])["text"]
            if taken < 1000:
                expected.append(text)
                taken += len(text)
    assert seen == expected


def test_documents_can_be_limited_and_splits_left_out(corpus, tmp_path):
    shards = prepare(
        str(corpus), tmp_path / "data", vocab_size=270, max_documents=20, splits={"train": 0.5, "evaluate": 0.5}
    )
    assert shards.splits == ["train", "evaluate"]
    assert sum(shards.stream(split, "python").num_documents for split in shards.splits) == 20


def test_a_mapping_of_sources(corpus, tmp_path):
    sources = {"a": str(corpus / "python"), "b": str(corpus / "italian" / "part-00.jsonl")}
    assert prepare(sources, tmp_path / "data", vocab_size=270).domains == ["a", "b"]


def test_a_finished_tokenizer_can_be_used_again(corpus, prepared, tmp_path):
    shards = prepare(str(corpus), tmp_path / "data", tokenizer=str(prepared / "tokenizer"), add_bos=True)
    assert shards.vocab_size == 300
    stream = shards.stream("train", "python")
    tokenizer = AutoTokenizer.from_pretrained(shards.tokenizer_dir)
    assert stream.read(0, 1).tolist() == [tokenizer.bos_token_id]


KILLED = """
import os, signal, sys, time
from pathlib import Path
import monet.data.preparation.prepare, tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # once, not in each child
corpus, whole, broken = sys.argv[1:]

def run(out):
    monet.data.preparation.prepare.prepare(corpus, Path(out), vocab_size=300, shard_tokens=400)

def finished():
    try:
        return len(list(Path(broken + ".partial").glob("*/*/shard-*.json")))
    except FileNotFoundError:  # a temporary folder that was renamed meanwhile
        return 0

for goal in (0, 3, 9, 18):
    child = os.fork()
    if child == 0:
        run(broken)
        os._exit(3)
    while finished() < goal or not Path(broken + ".partial", "settings.json").exists():
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "finished before it was killed"
    assert not Path(broken).exists()
    print("killed with", finished())
run(broken)
run(whole)
"""


def test_a_killed_preparation_continues_to_the_same_bytes(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", originals=40)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(corpus), str(whole), str(broken)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    kept = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("killed with")]
    assert len(kept) == 4
    assert kept == sorted(kept)
    assert kept[-1] >= 18
    assert files_of(broken) == files_of(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "corpus", "whole"]


def test_two_preparations_of_one_folder(corpus, tmp_path):
    from filelock import FileLock

    (tmp_path / "data.partial").mkdir()
    with FileLock(tmp_path / "data.partial" / ".lock"), pytest.raises(DataError, match=r"data\.partial: another"):
        prepare(str(corpus), tmp_path / "data", vocab_size=270)


def test_a_kill_while_old_data_are_deleted_costs_nothing(corpus, tmp_path, monkeypatch):
    out = tmp_path / "data"
    prepare(str(corpus), out, vocab_size=270)
    delete = shutil.rmtree

    def killed(folder, *words, **options):
        if (manifest := Path(folder, "manifest.json")).is_file():
            manifest.unlink()
            raise KeyboardInterrupt
        delete(folder, *words, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("monet.data.preparation.partial_folder.shutil.rmtree", killed)
        prepare(str(corpus), out, vocab_size=270, seed=7, overwrite=True)
    assert not out.exists()
    prepare(str(corpus), out, vocab_size=270, seed=7, overwrite=True)
    prepare(str(corpus), tmp_path / "whole", vocab_size=270, seed=7)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "whole"]


FULL_DISK = """
import resource, sys
from monet.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["data", "prepare", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("least_bytes", [100, 3000, 20000], ids=["settings", "tokenizer", "shards"])
def test_a_disk_that_takes_no_more_is_named_and_the_work_goes_on_later(tmp_path, least_bytes):
    corpus, out = write_corpus(tmp_path / "corpus", originals=150), tmp_path / "data"
    words = ["--source", str(corpus), "--out", str(out), "--vocab_size", "300"]
    command = [sys.executable, "-c", FULL_DISK, str(least_bytes), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3])
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert line.startswith(f"monet: error: {out}.partial: the preparation stopped: ")
    assert "File too large" in line and "bytes are free" in line and "run the same command again" in line
    assert not out.exists()
    prepare(str(corpus), out, vocab_size=300)
    assert files_of(out) == files_of(prepare(str(corpus), tmp_path / "whole", vocab_size=300).folder)


def records(path: Path, sources: list[str]) -> str:
    """A folder of one domain; the documents have these sources."""
    path.mkdir(parents=True)
    lines = [json.dumps({"text": f"text number {i}", "source": source}) for i, source in enumerate(sources)]
    (path / "a.jsonl").write_text("\n".join(lines))
    return str(path)


def test_a_source_that_names_the_data_set_is_refused(tmp_path):
    source = records(tmp_path / "in", ["common-crawl"] * 40)
    with pytest.raises(DataError, match=r"all 40 documents have source 'common-crawl'; .*--source_key"):
        prepare(source, tmp_path / "out", domain="web", vocab_size=260)
    made = prepare(source, tmp_path / "out", domain="web", vocab_size=260, source_key="none")
    assert sum(made.stream(split, "web").num_documents for split in made.splits) == 40
    assert "notes" not in made.manifest


def test_a_few_sources_of_many_documents_give_a_note(tmp_path, capsys):
    source = records(tmp_path / "in", [f"crawl {number % 4}" for number in range(100)])
    prepare(source, tmp_path / "out", domain="web", vocab_size=260)
    assert "note: domain 'web': 100 documents have 4 values of source, 25 times 'crawl" in capsys.readouterr().out


@pytest.mark.parametrize("killed", [False, True])
def test_a_stream_of_one_source_gives_a_note(tmp_path, capsys, prepared, monkeypatch, killed):
    source, tokenizer = records(tmp_path / "in", ["crawl"] * 40), str(prepared / "tokenizer")
    if killed:
        monkeypatch.setattr(limits, "BATCH_DOCUMENTS", 10)
        monkeypatch.setattr(limits, "KEEP_SECONDS", 0.0)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipeline.ShardWriter, "flush", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            prepare(source, tmp_path / "out", domain="web", tokenizer=tokenizer, stream=True)
    made = prepare(source, tmp_path / "out", domain="web", tokenizer=tokenizer, stream=True)
    assert [note[:60] for note in made.manifest["notes"]] == [
        "domain 'web': all 40 documents have source 'crawl'; each ori",
        "domain 'web' has no document in validation, identify, evalua",
    ]
    assert "note: domain 'web': all 40" in capsys.readouterr().out


def test_a_single_text_is_cut_into_splits_by_position(tmp_path):
    text = tmp_path / "play.txt"
    lines = [f"{number}: To be or not to be." for number in range(300)]
    text.write_text("\n".join(lines))
    with pytest.raises(DataError, match="--split_by position"):
        prepare(str(text), tmp_path / "out", vocab_size=260)
    made = prepare(str(text), tmp_path / "out", vocab_size=260, split_by="position", shard_tokens=500)
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_dir)
    parts = {}
    for split in SPLITS:
        stream = made.stream(split, "play")
        assert stream.num_documents == 1
        parts[split] = tokenizer.decode(stream.read(0, stream.num_tokens - 1).tolist())
    assert "".join(parts.values()) == text.read_text()
    assert all(part.endswith("\n") for part in list(parts.values())[:-1])
    for split, share in DEFAULT_SHARES.items():
        assert len(parts[split]) == pytest.approx(share * len(text.read_text()), abs=60)


def test_a_text_too_short_to_be_cut_is_refused(tmp_path):
    text = tmp_path / "line.txt"
    text.write_text("to be")
    with pytest.raises(DataError, match="too little text to be cut"):
        prepare(str(text), tmp_path / "out", vocab_size=260, split_by="position")
