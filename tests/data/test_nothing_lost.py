"""No token is lost or repeated: over ranks, loader processes, epochs, restarts, and changes of the number of ranks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monet.data.loading.loaders import TrainStream
from monet.data.loading.order import WindowOrder
from monet.data.loading.windows import WindowDataset
from tests.data.samples import EOS, make_shards

VOCAB = 70_000  # every token of a domain has its own id, in uint32


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Text of one to three domains, and starts of a run: (ranks, batches used, batches fetched and thrown away)."""
    lengths = draw(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=3))
    global_batch = draw(st.sampled_from([1, 2, 4, 6, 12]))
    ranks = st.sampled_from([n for n in (1, 2, 3, 4, 6) if global_batch % n == 0])
    starts = st.tuples(ranks, st.integers(0, 6), st.integers(0, 3))
    return {
        "lengths": lengths,
        "seq_len": draw(st.integers(1, 9)),
        "shard_tokens": draw(st.integers(1, 60)),
        "global_batch": global_batch,
        "starts": draw(st.lists(starts, min_size=1, max_size=4)),
        "last_ranks": draw(ranks),
        "epochs": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 3)),
    }


def write(folder: Path, plan: dict[str, Any]) -> dict[str, np.ndarray]:
    """Prepared data in which a token's id is its place; returns each domain's whole stream."""
    documents, streams = {}, {}
    for number, lengths in enumerate(plan["lengths"]):
        name, place = f"domain {number}", 10_000 * (number + 1)
        listed: list[list[int]] = []
        stream: list[int] = []
        for length in [*lengths, plan["seq_len"]]:
            listed.append(list(range(place + len(stream), place + len(stream) + length)))
            stream += [*listed[-1], EOS]
        documents[name], streams[name] = listed, np.array(stream)
    make_shards(folder, {"train": documents}, vocab_size=VOCAB, shard_tokens=plan["shard_tokens"])
    return streams


def run(folder: Path, plan: dict[str, Any], num_workers: int = 0) -> list[np.ndarray]:
    """Windows in the order in which a run with these starts uses them, all ranks of a batch in turn."""
    windows = WindowDataset(folder, "train", plan["seq_len"], document_mask=True)
    order = WindowOrder(windows.counts, plan["seed"])
    total = plan["epochs"] * len(windows)
    steps = -(-total // plan["global_batch"])
    state, used = None, []
    for ranks, wanted, fetched in [*plan["starts"], (plan["last_ranks"], steps, 0)]:
        streams = [
            TrainStream(
                windows,
                order,
                plan["global_batch"] // ranks,
                world_size=ranks,
                rank=rank,
                num_workers=num_workers,
                timeout=60,
                count_on_yield=False,
            )
            for rank in range(ranks)
        ]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        readers = [iter(stream) for stream in streams]
        for _ in range(min(wanted, steps - streams[0].consumed)):
            batches = [next(reader) for reader in readers]
            assert {int(batch["number"]) for batch in batches} == {streams[0].consumed}
            for stream in streams:
                stream.consumed += 1
            used += [row for batch in batches for row in batch["input_ids"].numpy()]
        for reader in readers:
            list(itertools.islice(reader, fetched))  # batches that were prefetched and lost in the kill
            reader.close()
        state = streams[-1].state_dict()
    return used[:total]


def check(plan: dict[str, Any], streams: dict[str, np.ndarray], used: list[np.ndarray]) -> None:
    """Each epoch predicts every token but the first, up to the rest behind the last window, exactly once."""
    seq_len = plan["seq_len"]
    wanted = []
    for stream in streams.values():
        whole = (len(stream) - 1) // seq_len * seq_len
        assert len(stream) - 1 - whole < seq_len
        wanted += [tuple(stream[start : start + seq_len + 1]) for start in range(0, whole, seq_len)]
    assert len(used) == plan["epochs"] * len(wanted)
    for epoch in range(plan["epochs"]):
        part = used[epoch * len(wanted) : (epoch + 1) * len(wanted)]
        assert sorted(map(tuple, part)) == sorted(wanted)


@given(plan=plans())
@settings(max_examples=30, deadline=None)
def test_no_token_is_lost_or_repeated(tmp_path_factory, plan):
    folder = tmp_path_factory.mktemp("data")
    streams = write(folder, plan)
    used = run(folder, plan)
    check(plan, streams, used)
    alone = run(folder, plan | {"starts": [], "last_ranks": 1})
    assert np.array_equal(np.stack(used), np.stack(alone))


FEW: dict[str, Any] = {
    "lengths": [[20, 3, 11], [7, 30]],
    "seq_len": 4,
    "shard_tokens": 25,
    "global_batch": 4,
    "starts": [(2, 2, 2), (1, 1, 0), (4, 1, 1)],
    "last_ranks": 2,
    "epochs": 2,
    "seed": 1,
}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_nor_with_loader_processes(tmp_path, num_workers):
    streams = write(tmp_path, FEW)
    used = run(tmp_path, FEW, num_workers)
    check(FEW, streams, used)
    assert np.array_equal(np.stack(used), np.stack(run(tmp_path, FEW)))


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    seed=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_a_mixture_draws_all_windows_of_a_domain_equally_often(counts, weights, seed):
    """At the end of every block of 4,096 windows no window of a domain is more than one draw ahead of another."""
    order = WindowOrder(counts, seed, {str(domain): weight for domain, weight in enumerate(weights[: len(counts)])})
    windows = order(np.arange(4096 * 3))
    for blocks in (1, 3):
        drawn = np.bincount(windows[: 4096 * blocks], minlength=sum(counts))
        for first, count in zip(order.first, counts, strict=True):
            own = drawn[first : first + count]
            assert own.max() - own.min() <= 1
            assert own.max() > 0
