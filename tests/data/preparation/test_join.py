"""Preparation in parts: joined parts equal one preparation, and parts that do not belong together are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from monet.cli import main
from monet.data.documents.division import divided, part_folder, parts_folder
from monet.data.documents.sources import TextFile
from monet.data.preparation import join as joining
from monet.data.preparation.join import join
from monet.data.preparation.prepare import prepare
from monet.data.storage.shards import MANIFEST, TokenShards
from monet.errors import ConfigError, DataError
from monet.parts import Part
from tests.data.samples import SENTENCES

ROOT = Path(__file__).parents[3]


def write_files(folder: Path, files: int = 7, records: int = 30) -> Path:
    """Domains of several files of different sizes; one original has records in all files of its domain."""
    for domain, sentence in SENTENCES.items():
        (folder / domain).mkdir(parents=True)
        for number in range(files):
            lines = [
                {"text": f"{number} {record} {sentence} " * (1 + (record + number) % 4), "source": f"{record % 11}"}
                for record in range(records * (1 + number % 3))
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / domain / f"{number}.jsonl").write_text(text + '{"text": " "}\n{"no text": 1}\n')
    (folder / "empty").mkdir()
    (folder / "python" / "marked.txt").write_text("one<|endoftext|>two<|endoftext|>three")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def settings(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("tokenizer") / "data"
    tokenizer = prepare(str(source), out, vocab_size=300, on_error="skip", max_documents=20).tokenizer_dir
    return {
        "source": str(source),
        "tokenizer": str(tokenizer),
        "stream": True,
        "shard_tokens": 4000,
        "on_error": "skip",
    }


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return prepare(**settings, out=tmp_path_factory.mktemp("whole") / "data")


@pytest.fixture(scope="module")
def made(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three parts, made out of turn."""
    out = tmp_path_factory.mktemp("parts") / "data"
    for index in (2, 0, 1):
        prepare(**settings, out=out, part=f"{index}/3")
    return parts_folder(out)


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> Path:
    """The folder to join three parts into, which are there."""
    shutil.copytree(made, parts_folder(tmp_path / "data"))
    return tmp_path / "data"


def documents(shards: TokenShards, split: str, domain: str) -> list[tuple[str, str | None, list[int]]]:
    """Name, source and ids of each."""
    stream = shards.stream(split, domain)
    starts = stream.document_starts().tolist()
    sources = stream.document_sources(range(stream.num_documents))
    return [
        (stream.document_name(number), sources[number], stream.read(starts[number], starts[number + 1]).tolist())
        for number in range(stream.num_documents)
    ]


def but_for_the_division(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without shards, without what is sampled at the start of batches, and without times."""
    parts = {
        split: {domain: {key: value for key, value in part.items() if key != "shards"} for domain, part in of.items()}
        for split, of in manifest["splits"].items()
    }
    lost = {
        domain: {key: counts[key] for key in ("tokens", "unknown_ids")}
        for domain, counts in manifest["fidelity"].items()
    }
    rest = {key: value for key, value in manifest.items() if key not in ("fingerprint", "throughput")}
    return rest | {"splits": parts, "fidelity": lost, "tokens": manifest["throughput"]["tokens"]}


def test_three_parts_joined_are_one_run(settings, whole, parts, capsys):
    joined = join(parts)
    assert "data.parts is no longer needed" in capsys.readouterr().out
    assert but_for_the_division(joined.manifest) == but_for_the_division(whole.manifest)
    assert joined.manifest["skipped"]["counts"] == {"empty": 21, "no text": 21}
    assert any("<|endoftext|>" in note for note in joined.manifest["notes"])
    assert joined.manifest["throughput"]["parts"] == 3
    total = 0
    for split in whole.splits:
        for domain in whole.domains:
            found = documents(joined, split, domain)
            assert found == documents(whole, split, domain)
            total += len(found)
            assert all(source in {str(n) for n in range(11)} | {name} for name, source, _ in found)
    assert total == 3 * 30 * (1 + 2 + 3 + 1 + 2 + 3 + 1) + 1
    # every part has some documents, and no shard was copied
    for index in range(3):
        part = TokenShards(part_folder(parts, Part(index, 3)))
        assert sum(of["documents"] for split in part.manifest["splits"].values() for of in split.values()) > 100
    shards = list(parts.glob("*/*/shard-*"))
    assert shards and all(path.stat().st_nlink == 2 for path in shards)
    shutil.rmtree(parts_folder(parts))
    TokenShards(parts, full=True)
    # with the configuration of one run, the joined data are up to date
    assert prepare(**settings, out=parts).fingerprint == joined.fingerprint
    assert "nothing to do" in capsys.readouterr().out


def test_joining_again_does_nothing_and_one_run_does_not_start_beside_parts(settings, parts, capsys):
    with pytest.raises(ConfigError, match=r"data\.parts holds parts of .*monet data join --out"):
        prepare(**settings, out=parts)
    assert main(["data", "join", "--out", str(parts)]) == 0
    assert main(["data", "join", "--out", str(parts)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_file_system_without_links(parts, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    linked = join(parts).fingerprint
    shutil.rmtree(parts)
    monkeypatch.setattr(joining.os, "link", refuse)
    assert join(parts).fingerprint == linked
    assert all(path.stat().st_nlink == 1 for path in parts.glob("*/*/shard-*"))


def test_a_missing_or_unfinished_part_is_named(parts):
    third = part_folder(parts, Part(2, 3))
    third.rename(third.with_name(f"{third.name}.partial"))
    with pytest.raises(DataError, match=r"part-2-of-3: this part is not finished; .*--part 2/3"):
        join(parts)
    shutil.rmtree(third.with_name(f"{third.name}.partial"))
    with pytest.raises(DataError, match=r"part-2-of-3: this part is missing"):
        join(parts)
    assert not parts.exists()
    shutil.rmtree(parts_folder(parts))
    with pytest.raises(DataError, match=r"data\.parts holds no parts"):
        join(parts)


def test_parts_of_two_divisions_are_refused(settings, parts):
    prepare(**settings, out=parts, part="0/2")
    with pytest.raises(DataError, match="parts of 2 and of 3; remove those of one division"):
        join(parts)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"seed": 3}, r"seed: 0 there, 3 requested"), ({"shard_tokens": 3000}, r"shard_tokens: 4000 there, 3000")],
)
def test_a_part_of_other_settings_is_named(settings, parts, changes, reason):
    prepare(**settings | changes, out=parts, part="1/3", overwrite=True)
    with pytest.raises(DataError, match=rf"part-1-of-3: its settings differ from those of part-0-of-3 \(.*{reason}"):
        join(parts)


def test_a_part_with_another_tokenizer_or_source_is_named(settings, parts, tmp_path):
    other = prepare(settings["source"], tmp_path / "other", vocab_size=301, on_error="skip", max_documents=20)
    prepare(**settings | {"tokenizer": str(other.tokenizer_dir)}, out=parts, part="1/3", overwrite=True)
    with pytest.raises(DataError, match=r"part-1-of-3: its settings differ .*tokenizer: 'sha256:"):
        join(parts)
    grown = shutil.copytree(settings["source"], tmp_path / "grown")
    (grown / "italian" / "9.jsonl").write_text('{"text": "pane"}\n')
    prepare(**settings | {"source": str(grown)}, out=parts, part="1/3", overwrite=True)
    with pytest.raises(DataError, match=r"part-1-of-3: names or sizes of the source's files differ"):
        join(parts)


def test_a_damaged_or_renamed_part_is_named(parts):
    first, second = (part_folder(parts, Part(index, 3)) for index in (0, 1))
    shutil.copytree(second, parts.with_name("kept"))
    shard = next(second.glob("train/*/shard-00000.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"part-1-of-3/train/.*bytes, but the manifest says"):
        join(parts)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    with pytest.raises(DataError, match=r"part-1-of-3: its manifest says that it is part 0"):
        join(parts)
    shutil.rmtree(second)
    shutil.copytree(parts.with_name("kept"), second)
    manifest = json.loads((second / MANIFEST).read_text())
    del manifest["part"]
    (second / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"part-1-of-3: the manifest names no part"):
        join(parts)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stream": False}, "part needs --stream true"),
        ({"max_documents": 5}, "max_documents 5 counts the first documents of the whole source"),
        ({"part": "3/3"}, "the index must be from 0 to 2"),
        ({"part": "one"}, "write i/n"),
        ({"part": "0/99"}, r"the source has 22 file\(s\) and 0 dataset\(s\)"),
    ],
)
def test_refusals(settings, tmp_path, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        prepare(**{**settings, "part": "0/3", **changes}, out=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_part_can_be_empty(settings, tmp_path, capsys):
    folder = tmp_path / "text" / "a"
    folder.mkdir(parents=True)
    for number, words in enumerate((1, 1, 9999)):
        (folder / f"{number}.txt").write_text("word " * words)
    out, changes = tmp_path / "data", {"source": str(tmp_path / "text"), "splits": {"train": 1.0}}
    for index in range(3):
        prepare(**settings | changes, out=out, part=f"{index}/3")
    assert "note: no file of the source belongs to this part" in capsys.readouterr().out
    assert join(out).manifest["splits"]["train"]["a"]["documents"] == 3


def test_the_division_covers_all_in_order_and_is_even(tmp_path):
    files = {"a": [], "b": []}
    for number in range(90):
        path = tmp_path / f"{number:02d}"
        path.write_bytes(bytes(100 + 13 * number % 61))
        files["ab"[number // 50]].append(TextFile(path, "ab"[number // 50], path.name))
    remote = {f"r{number}": f"hf://owner/{number}" for number in range(5)}
    parts = [divided(files, remote, Part(index, 7)) for index in range(7)]
    assert {digest for *_, digest in parts} == {parts[0][2]}
    for domain, listed in files.items():
        assert [file for own, *_ in parts for file in own[domain]] == listed
    assert [name for _, own, _ in parts for name in own] == list(remote)
    sizes = [sum(file.path.stat().st_size for of in own.values() for file in of) for own, *_ in parts]
    assert max(sizes) - min(sizes) < 250
    assert divided(files, remote | {"x": "hf://owner/x"}, Part(0, 7))[2] != parts[0][2]


RUN = """
import json, sys
from monet.data import limits
from monet.data.preparation.prepare import prepare
limits.BATCH_DOCUMENTS, limits.KEEP_SECONDS = 4, 0.0
prepare(**json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_part_goes_on_while_others_run(settings, whole, tmp_path):
    """All parts at once, as on several machines; one is killed and started again."""
    out = tmp_path / "data"

    def start(index: int) -> subprocess.Popen[bytes]:
        asked = json.dumps(settings | {"out": str(out), "part": f"{index}/3"})
        return subprocess.Popen([sys.executable, "-c", RUN, asked], cwd=ROOT, stdout=subprocess.DEVNULL)

    running = [start(index) for index in range(3)]
    progress = part_folder(out, Part(1, 3)).with_name("part-1-of-3.partial") / "progress.json"
    while not progress.is_file() and running[1].poll() is None:
        time.sleep(0.01)
    os.kill(running[1].pid, signal.SIGKILL)
    assert running[1].wait() == -signal.SIGKILL
    assert json.loads(progress.read_text())["documents"] > 0
    with pytest.raises(DataError, match=r"this part is (not finished|missing)"):
        join(out)
    running[1] = start(1)
    assert [process.wait() for process in running] == [0, 0, 0]
    joined = join(out)
    for split in whole.splits:
        for domain in whole.domains:
            assert documents(joined, split, domain) == documents(whole, split, domain)
