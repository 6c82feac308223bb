"""Position ids of packed windows: they restart at every document, across shards too, and belong to the position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.windows import WindowDataset
from monet.errors import ConfigError
from tests.data.samples import make_shards

LENGTHS = st.lists(st.integers(0, 30), min_size=3, max_size=12)


@given(lengths=LENGTHS, shard_tokens=st.integers(1, 40), seq_len=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_positions_count_from_the_start_of_each_document(tmp_path_factory, lengths, shard_tokens, seq_len):
    folder = tmp_path_factory.mktemp("data")
    documents = [[number + 5] * length for number, length in enumerate([*lengths, seq_len])]
    make_shards(folder, {"train": {"a": documents}}, shard_tokens=shard_tokens)
    windows = WindowDataset(folder, "train", seq_len, document_mask=True)
    wanted = np.concatenate([np.arange(length + 1) for length in [*lengths, seq_len]])
    for index in range(len(windows)):
        part = wanted[index * seq_len : (index + 1) * seq_len]
        behind = np.arange(seq_len) < (np.flatnonzero(part == 0)[0] if (part == 0).any() else seq_len)
        found = windows[index]["position_ids"].numpy()
        assert np.array_equal(found, np.where(behind, np.arange(seq_len), part))


def make(prepared, **changes):
    return MonetDataModule(str(prepared), seq_len=16, batch_size=4, **changes)


def test_batches_carry_them_only_when_asked(prepared):
    plain = next(iter(make(prepared).train_dataloader()))
    data = make(prepared, document_mask=True)
    batch = next(iter(data.train_dataloader()))
    assert "position_ids" not in plain
    assert batch["position_ids"].shape == (4, 16)
    assert batch["position_ids"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], plain["input_ids"])
    assert "position_ids" in next(iter(data.val_dataloader()))


@pytest.mark.parametrize("masked", [True, False])
def test_a_run_keeps_its_choice(prepared, masked):
    state = make(prepared, document_mask=masked).train_dataloader().state_dict()
    other = make(prepared, document_mask=not masked)
    other.load_state_dict(state)
    with pytest.raises(ConfigError, match=f"document_mask {not masked} differs from the run's {masked}"):
        other.train_dataloader()


def test_checkpoints_of_earlier_versions_go_on_without_it(prepared):
    state = make(prepared).train_dataloader().state_dict()
    del state["document_mask"]
    data = make(prepared)
    data.load_state_dict(state | {"consumed": 3})
    data.train_dataloader()
    assert data.state_dict()["consumed"] == 3
