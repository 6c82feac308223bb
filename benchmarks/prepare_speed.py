"""Measures how fast `monet data prepare` turns text into token shards, with one process and with several.

    python -m benchmarks.prepare_speed [--processes 1 2] [--copies 4] [--rounds 3] [--vocab_size 8192] [--json FILE]

The command writes several copies of the repository's corpus as a parquet table and trains a byte-level BPE on it. Then
it prepares the table in one pass. Each setting runs in a separate process, in turns. The figure is the median of the
tokens per second that the preparation reports: reading, splitting, tokenising and writing, without the start.
"1 thread" is one process whose tokeniser may use one core, "1" is one process whose tokeniser uses all cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown
from monet.files import atomic_write_json

ROOT = Path(__file__).resolve().parent.parent
PREPARE = """
import sys
from pathlib import Path
from monet.data.preparation.prepare import prepare
source, out, tokenizer, processes = sys.argv[1:]
prepare({"text": source}, Path(out), tokenizer=tokenizer, stream=True, processes=int(processes))
"""


def write_source(folder: Path, copies: int) -> tuple[Path, int]:
    """The corpus as one parquet table; returns its path and the bytes of its text."""
    import pyarrow
    from pyarrow import parquet

    from monet.data.documents.records import read_documents
    from monet.data.documents.sources import Skipped, find_files

    files = [file for listed in find_files(ROOT / "corpus" / "text")[0].values() for file in listed]
    documents = [document for file in files for document in read_documents(file, Skipped())]
    path = folder / "corpus.parquet"
    schema = pyarrow.schema([("text", pyarrow.string()), ("source", pyarrow.string())])
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for copy in range(copies):
            rows = [{"text": document.text, "source": f"{copy}/{document.source}"} for document in documents]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    return path, copies * sum(len(document.text.encode()) for document in documents)


def one_run(source: Path, tokenizer: Path, folder: Path, way: str) -> dict[str, Any]:
    """The speed that a preparation in a separate process reports."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        out = Path(temporary, "out")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "true"}
        if way == "1 thread":
            environment["TOKENIZERS_PARALLELISM"] = "false"
        words = [str(source), str(out), str(tokenizer), way.split()[0]]
        done = subprocess.run([sys.executable, "-c", PREPARE, *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{way}: the preparation ended with {done.returncode}\n{done.stderr}")
        return json.loads((out / "manifest.json").read_text(encoding="utf-8"))["throughput"]


def measure(processes: list[int], copies: int, rounds: int, vocab_size: int) -> dict[str, Any]:
    """Tokens per second of each setting, in turns, and the machine and versions."""
    from monet.data.preparation.prepare import prepare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, size = write_source(folder, copies)
        corpus = str(ROOT / "corpus" / "text")
        tokenizer = prepare(corpus, folder / "tokenizer", vocab_size=vocab_size).tokenizer_dir
        ways = ["1 thread", *map(str, processes)]
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        load = os.getloadavg()[0]
        for _ in range(rounds):
            for way in ways:
                found[way].append(one_run(source, tokenizer, folder, way))
    rows = []
    for way, runs in found.items():
        speeds = [run["tokens_per_second"] for run in runs]
        middle = statistics.median(speeds)
        rows.append({
            "processes": way,
            "tokens/s": middle,
            "lowest": min(speeds),
            "highest": max(speeds),
            "MB of text/s": middle * size / runs[0]["tokens"] / 1e6,
        })  # fmt: skip
    about = {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load average before": round(load, 2),
        "text bytes": size,
        "tokens": found[ways[0]][0]["tokens"],
        "vocabulary": vocab_size,
        "rounds": rounds,
    }
    return {"about": about, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of tokenising processes")
    parser.add_argument("--copies", type=int, default=4, help="copies of the corpus in the table")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--vocab_size", type=int, default=8192, help="ids of the tokenizer")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    result = measure(arguments.processes, arguments.copies, arguments.rounds, arguments.vocab_size)
    print("\n" + ", ".join(f"{key} {value}" for key, value in result["about"].items()) + "\n")
    columns = {"processes": "", "tokens/s": ",.0f", "lowest": ",.0f", "highest": ",.0f", "MB of text/s": ".2f"}
    print(markdown(result["rows"], columns))
    if arguments.json is not None:
        atomic_write_json(arguments.json, result)


if __name__ == "__main__":
    main()
