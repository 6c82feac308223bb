"""How quick is the page of `monet view` on an index of a large model, and how much memory does it take?

    python -m benchmarks.view_scale --out runs/view-scale                 # six groups of 512 x 512 experts
    python -m benchmarks.view_scale --out runs/view-small --keys 64       # a quick check

The index is made of random numbers of the right form. Times are those of requests to the server's application, without
a browser. Each is asked twice with different values, so that no answer is kept from before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from monet.eval.index import info as names
from monet.eval.index.info import DataNote, IndexInfo, ModelNote, Settings
from monet.eval.index.keys import keys_of, weight_bits, window_part
from monet.eval.index.tables import BINS, INTERVALS, SAMPLES, State
from monet.eval.index.text import SCHEMA
from monet.eval.index.units import Units
from monet.eval.index.write import write_index

LABELS = ["biology", "chemistry", "code", "history", "law", "physics"]
VOCABULARY, WINDOWS, LENGTH, TOP, HEADS = 32_000, 20_000, 64, 16, 8


def make_index(folder: Path, groups: int, keys: int) -> None:
    """Write an index of random numbers.

    Args:
        folder: new folder.
        groups, keys: R and E.
    """
    generator = torch.Generator().manual_seed(0)
    units = Units(groups, keys)
    ids = np.random.default_rng(0).zipf(1.3, (WINDOWS, LENGTH)) % VOCABULARY
    number = np.arange(WINDOWS)
    windows = pa.table(
        {
            "window": number,
            "label": [LABELS[n % len(LABELS)] for n in number],
            "document": [str(n // 4) for n in number],
            "source": [None] * WINDOWS,
            "tokens": np.full(WINDOWS, LENGTH),
            "ids": list(ids),
            "position_ids": [None] * WINDOWS,
        },
        schema=SCHEMA,
    )
    tokens = [WINDOWS * LENGTH // len(LABELS)] * len(LABELS)
    model = ModelNote(
        "synthetic",
        "0" * 32,
        "",
        "none",
        "float32",
        "cpu",
        groups,
        keys,
        HEADS,
        VOCABULARY,
        groups,
        list(range(groups)),
    )
    info = IndexInfo(
        model,
        DataNote("", "", {}, LABELS),
        Settings(TOP, 0, "sampled", [], 0),
        tokens,
        [WINDOWS // len(LABELS)] * len(LABELS),
        0,
        {},
        {},
    )
    folder.mkdir(parents=True)
    write_index(folder, info, (_state(units.per_group, generator) for _ in range(groups)), [windows], None)


def _state(units: int, generator: torch.Generator) -> State:
    def weights(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).pow_(4).mul_(HEADS).clamp_(min=1e-4)

    def numbers(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=generator)

    alive_U = (torch.rand(units, generator=generator) > 0.1).long()
    top = (
        keys_of(weight_bits(weights(units, TOP)), window_part(numbers(WINDOWS, units, TOP)))
        .sort(1, descending=True)
        .values
    )
    rows = units * INTERVALS
    samples = keys_of(numbers(1 << 31, rows, SAMPLES), window_part(numbers(WINDOWS, rows, SAMPLES)))
    payload = (weight_bits(weights(rows, SAMPLES)).long() << 16) | numbers(LENGTH, rows, SAMPLES)
    histogram = torch.rand(units, BINS, generator=generator).pow_(6).mul_(400).int()
    # One label of each unit has most of its weight.
    sums = torch.rand(len(LABELS), units, generator=generator).pow_(8)
    sums[numbers(len(LABELS), units), torch.arange(units)] += torch.rand(units, generator=generator)
    return State(
        top * alive_U[:, None],
        numbers(LENGTH, units, TOP).int(),
        samples * alive_U.repeat_interleave(INTERVALS)[:, None],
        payload,
        histogram * alive_U[:, None].int(),
        (sums * 2.0**36).long() * alive_U,
        (sums.sum(0) * 2.0**36).long() * alive_U,
        torch.zeros(0, dtype=torch.int32),
    )


def questions(groups: int, pairs: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, path and parameters of requests."""
    for n in range(2):
        yield "sort by a column", "experts", {"sort": ("-label_share", "token_share")[n]}
        yield "filter by label and range", "experts", {"label": LABELS[n], "min.count": 50 + n, "sort": "-max"}
        yield "search a token", "experts", {"token": ("[17", "[23")[n], "sort": "-match"}
        yield (
            "page 2,000 of a sort",
            "experts",
            {"sort": ("-mean", "-count")[n], "offset": 100_000, "group": n % groups},
        )
        yield "overview", "overview", {}
        yield "an expert", f"expert/{n % groups}:{pairs // (n + 2)}", {}
        yield "neighbours by contexts", f"expert/{n % groups}:{pairs // (n + 2)}/neighbours", {"by": "contexts"}
        yield "neighbours by labels", f"expert/{n % groups}:{pairs // (n + 2)}/neighbours", {"by": "labels"}


def measure(folder: Path) -> dict[str, Any]:
    """Times in seconds, and the largest memory of the process in bytes."""
    from starlette.testclient import TestClient

    from monet.eval.index.index import Index
    from monet.eval.view.api import application
    from monet.eval.view.store import Store

    began = time.perf_counter()
    index = Index(folder)
    store = Store(index)
    found: dict[str, float] = {"open": time.perf_counter() - began}
    client = TestClient(application(store, None, "word"), base_url="http://127.0.0.1")
    for name, path, words in questions(index.units.groups, index.units.pairs):
        began = time.perf_counter()
        answer = client.get(f"/word/api/{path}", params=words)
        found[name] = max(found.get(name, 0.0), time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"experts": index.units.experts, "seconds": found, "bytes": memory, "columns": store.columns.bytes}


def main() -> None:
    """Make the index if it does not exist, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the index")
    parser.add_argument("--groups", type=int, default=6, help="routing groups")
    parser.add_argument("--keys", type=int, default=512, help="keys of a side")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if not (options.out / names.INFO).is_file():
        make_index(options.out, options.groups, options.keys)
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a new process has only the memory of the page
        found = pool.apply(measure, (options.out,))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"{found['experts']:,} experts; largest memory {found['bytes'] / 2**30:.2f} GiB, "
        f"columns {found['columns'] / 1e6:.0f} MB"
    )
    for name, seconds in found["seconds"].items():
        print(f"{name:<28} {1000 * seconds:8.0f} ms")


if __name__ == "__main__":
    main()
