"""Compares windows with a plain reading of the token lists they are cut from."""

from __future__ import annotations

import itertools
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monet.data.loading.loaders import TrainStream
from monet.data.loading.order import WindowOrder
from monet.data.loading.windows import WindowDataset, collate
from tests.data.samples import EOS, make_shards

DOCUMENTS = st.lists(st.lists(st.integers(2, 99), max_size=30), min_size=1, max_size=12)


def flat(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in [*document, EOS]]


@given(DOCUMENTS, DOCUMENTS, st.integers(1, 12), st.integers(1, 60))
@settings(max_examples=12, deadline=None)
def test_every_token_but_the_first_is_predicted_once(first, second, seq_len, shard_tokens):
    domains = {"a": first, "b": second}
    chosen = [name for name, listed in domains.items() if len(flat(listed)) > seq_len]
    if not chosen:
        return
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), {"train": domains}, shard_tokens=shard_tokens)
        windows = WindowDataset(folder, "train", seq_len, chosen)
        for place, name in enumerate(chosen):
            stream = flat(domains[name])
            owners = [number for number, listed in enumerate(domains[name]) for _ in range(len(listed) + 1)]
            items = [windows[index] for index in windows.windows_of(name)]
            predicted = [token for item in items for token in item["input_ids"][1:].tolist()]
            assert predicted == stream[1 : 1 + len(predicted)]
            assert len(stream) - 1 - len(predicted) == windows.dropped_tokens[place] < seq_len
            for number, item in enumerate(items):
                assert item["input_ids"].tolist() == stream[number * seq_len : number * seq_len + seq_len + 1]
                assert windows.domains[item["domain"]] == name
                assert item["document"] == owners[number * seq_len]
                assert windows.document_name(item["index"]) == f"{name}-{item['document']}"
                assert windows.locate(item["index"]) == (name, number * seq_len, item["document"])


@given(
    st.integers(1, 40), st.integers(1, 3), st.integers(1, 5), st.integers(0, 3), st.lists(st.integers(1, 6), max_size=6)
)
@settings(max_examples=20, deadline=None)
def test_no_window_is_lost_or_repeated_over_ranks_epochs_and_restarts(count, world_size, batch_size, seed, runs):
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), {"train": {"a": [[5] * (count * 2)]}})
        windows = WindowDataset(folder, "train", 2)
        assert len(windows) == count
        order = WindowOrder(windows.counts, seed)

        def streams() -> list[TrainStream]:
            return [
                TrainStream(windows, order, batch_size, world_size=world_size, rank=rank) for rank in range(world_size)
            ]

        seen: list[int] = []
        states = [stream.state_dict() for stream in streams()]
        for length in runs:
            restarted = streams()
            for stream, state in zip(restarted, states, strict=True):
                stream.load_state_dict(state)
            taken = [[b["index"].tolist() for b in itertools.islice(stream, length)] for stream in restarted]
            seen += [index for batches in zip(*taken, strict=True) for batch in batches for index in batch]
            states = [stream.state_dict() for stream in restarted]
        assert len(seen) == sum(runs) * batch_size * world_size
        for start in range(0, len(seen), count):
            epoch = seen[start : start + count]
            assert len(set(epoch)) == len(epoch)
        assert seen == order(np.arange(len(seen))).tolist()


def test_shards_are_filled_and_not_exceeded_but_by_one_long_document(tmp_path):
    documents = [[5] * 4, [5] * 4, [5] * 3, [5] * 20, [5] * 2, [5] * 5]
    make_shards(tmp_path, {"train": {"a": documents}}, shard_tokens=10)
    shards = json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]["a"]["shards"]
    assert [shard["tokens"] for shard in shards] == [10, 4, 21, 9]
    assert [shard["documents"] for shard in shards] == [2, 1, 1, 2]


def test_reading_is_a_view_of_the_file_and_survives_pickling(prepared):
    windows = WindowDataset(prepared, "train", 16)
    stream = windows.shards.stream("train", "english")
    ids = stream.read(3, 40)
    assert not ids.flags.owndata
    assert isinstance(ids.base, np.memmap) or isinstance(ids, np.memmap)
    assert len(pickle.dumps(windows)) < 100_000
    again = pickle.loads(pickle.dumps(windows))
    assert again[5]["input_ids"].equal(windows[5]["input_ids"])


def test_a_domain_can_be_chosen_and_keeps_its_label(prepared):
    windows = WindowDataset(prepared, "evaluate", 16, ["python"])
    batch = collate([windows[index] for index in range(2)])
    assert batch["domain"].tolist() == [windows.domains.index("python")] * 2
    assert batch["input_ids"].shape == (2, 17)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_a_window_that_is_not_there(prepared, index):
    with pytest.raises(IndexError, match=str(index)):
        WindowDataset(prepared, "train", 16)[index]
