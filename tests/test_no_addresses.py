"""Reading local data opens no network address and no other file, and never unpacks more than fits in memory."""

from __future__ import annotations

import http.server
import json
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monet.data.documents.hub import Rows
from monet.data.documents.sources import Skipped
from monet.errors import DataError
from monet.eval.core import tables
from monet.eval.suites.code.problems import read_problems
from monet.eval.suites.questions import local_data
from monet.eval.suites.toxicity.prompts import read_prompts

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and the paths that were requested from it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


def table(address: str, column: str = "extra") -> pa.Table:
    """A row whose column claims to be an image at an address."""
    rows = {"text": ["some text"], column: pa.array([{"bytes": None, "path": f"{address}/a.png"}], IMAGE)}
    features = {name: {"_type": "Value", "dtype": "string"} for name in rows} | {column: {"_type": "Image"}}
    return pa.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(folder: Path, content: pa.Table) -> None:
    pq.write_table(content, folder / "test.parquet")


def arrow(folder: Path, content: pa.Table) -> None:
    with pa.OSFile(str(folder / "test.arrow"), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content)


def saved(folder: Path, content: pa.Table) -> None:
    (folder / "test").mkdir()
    arrow(folder / "test", content)
    info = json.loads(content.schema.metadata[b"huggingface"])["info"]
    (folder / "test" / "dataset_info.json").write_text(json.dumps(info))
    state = {"_data_files": [{"filename": "test.arrow"}], "_fingerprint": "0", "_format_columns": None,
             "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": "test"}  # fmt: skip
    (folder / "test" / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("write", [parquet, arrow, saved])
def test_benchmark_data_are_not_decoded(write, server, tmp_path):
    address, asked = server
    (tmp_path / "arc_easy").mkdir()
    write(tmp_path / "arc_easy", table(address))
    found = local_data.find(tmp_path, ["arc_easy"], None, ["test"])
    assert found is not None
    (row,) = local_data.read(found, "test", None)
    assert row == {"text": "some text", "extra": {"bytes": None, "path": f"{address}/a.png"}}
    assert not asked


@pytest.mark.parametrize("names", [["../other.arrow"], ["/etc/passwd"], [], [3]])
def test_saved_data_stay_in_their_folder(names, tmp_path, server):
    (tmp_path / "arc_easy").mkdir()
    saved(tmp_path / "arc_easy", table(server[0]))
    state = tmp_path / "arc_easy" / "test" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    found = local_data.find(tmp_path, ["arc_easy"], None, ["test"])
    assert found is not None
    with pytest.raises(DataError, match=r"names no Arrow files in its own folder"):
        local_data.read(found, "test", None)


def rows(folder: Path, **options: Any) -> list[Any]:
    keys = {"domain": "a", "domain_key": None, "text_key": "text", "source_key": "source"}
    return list(Rows(f"hf://{folder}", Skipped("fail"), **{**keys, **options}))


def test_a_data_set_s_other_columns_are_not_decoded(server, tmp_path):
    address, asked = server
    pq.write_table(table(address), tmp_path / "train.parquet")
    (document,) = rows(tmp_path)
    assert document.text == "some text" and not asked


def test_a_column_that_is_used_must_be_plain(server, tmp_path):
    address, asked = server
    pq.write_table(table(address), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'extra' is declared as Image, not as text"):
        rows(tmp_path, text_key="extra")
    assert not asked


@pytest.mark.parametrize("place", ["README.md", ".huggingface.yaml"])
def test_a_card_with_an_address_is_refused(place, server, tmp_path):
    address, asked = server
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "train.parquet")
    card = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {address}/train.parquet\n"
    (tmp_path / place).write_text(f"---\n{card}---\n" if place == "README.md" else card)
    with pytest.raises(DataError, match="a local data set must not open"):
        rows(tmp_path)
    assert not asked
    card = "configs:\n- config_name: default\n  data_files: train.parquet\n"
    (tmp_path / place).write_text(f"---\n{card}---\n" if place == "README.md" else card)
    assert len(rows(tmp_path)) == 1 and not asked


def bomb(path: Path, column: str) -> None:
    """A small file of 3 GB: one text of a megabyte, 3,000 times."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({column: text}), path, compression="zstd", store_schema=False)


def of_problems(folder: Path) -> object:
    return read_problems(str(folder), ["python"])


def of_prompts(folder: Path) -> object:
    return read_prompts([folder / "test.parquet"], "all")


def of_benchmarks(folder: Path) -> object:
    found = local_data.find(folder.parent, [folder.name], None, ["test"])
    assert found is not None
    return local_data.read(found, "test", None)


@pytest.mark.parametrize("read", [of_problems, of_prompts, of_benchmarks])
def test_a_packed_table_without_end(read, tmp_path, monkeypatch):
    (tmp_path / "arc_easy").mkdir()
    path = tmp_path / "arc_easy" / "test.parquet"
    bomb(path, "text")
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(tables, "MAX_BYTES", 1 << 28)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="holds more than 268435456 bytes when unpacked"):
        read(tmp_path / "arc_easy")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "less than a gigabyte (KiB)"


@pytest.mark.parametrize("name", ["humaneval-py.json", "humaneval-py.jsonl"])
def test_devices_are_no_problem_files(name, tmp_path):
    (tmp_path / name).symlink_to(Path("/dev", "zero"))
    with pytest.raises(DataError, match=r"not a file|a line of more than"):
        read_problems(str(tmp_path), ["python"])
