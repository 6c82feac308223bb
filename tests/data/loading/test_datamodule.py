"""Batches and their resumption, with and without a real Lightning trainer."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.loaders import TrainStream, ValidationPass
from monet.data.loading.windows import WindowDataset
from monet.errors import ConfigError, DataError
from tests.data.samples import make_shards

SEQ_LEN = 16


def make(prepared: Path, **changes) -> MonetDataModule:
    settings: dict[str, Any] = {"seq_len": SEQ_LEN, "batch_size": 4, "seed": 3, "max_val_windows": 3}
    return MonetDataModule(str(prepared), **(settings | changes))


def first_indices(stream, count: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in itertools.islice(stream, count)]


class Recorder(L.LightningModule):
    """Notes which windows each step saw; raises at the beginning of step `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.stop = stop
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        if self.stop == len(self.seen):
            raise RuntimeError("interrupted")
        self.seen.append(batch["index"].tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.extend(batch["index"].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    model: L.LightningModule, data: MonetDataModule, folder: Path, resume: Path | None = None, **settings: Any
) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=14,
        accumulate_grad_batches=2,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_fit_sees_the_batches_of_an_uninterrupted_one(prepared, tmp_path, num_workers):
    whole, broken, resumed = Recorder(), Recorder(stop=19), Recorder()
    fit(whole, make(prepared, num_workers=num_workers), tmp_path / "whole")
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(broken, make(prepared, num_workers=num_workers), tmp_path / "broken")
    fit(resumed, make(prepared, num_workers=num_workers), tmp_path / "resumed", tmp_path / "broken" / "step=8.ckpt")
    assert len(whole.seen) == 28
    assert broken.seen == whole.seen[:19]
    assert resumed.seen == whole.seen[16:]


def test_short_epochs_of_the_trainer_do_not_disturb_the_stream(prepared, tmp_path):
    whole, short, resumed = Recorder(), Recorder(), Recorder()
    fit(whole, make(prepared), tmp_path / "whole")
    fit(short, make(prepared), tmp_path / "short", limit_train_batches=6)
    assert short.seen == whole.seen
    checkpoint = tmp_path / "short" / "step=8.ckpt"
    fit(resumed, make(prepared), tmp_path / "resumed", checkpoint, limit_train_batches=6)
    assert resumed.seen == whole.seen[16:]


def test_a_checkpoint_counts_used_batches_not_fetched_ones(prepared, tmp_path):
    fit(Recorder(), make(prepared, num_workers=2), tmp_path)
    state = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert state["MonetDataModule"]["consumed"] == 8
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["consumed"] == 8


def test_a_second_fit_begins_at_the_first_batch(prepared, tmp_path):
    data, first, second = make(prepared), Recorder(), Recorder()
    fit(first, data, tmp_path / "first")
    fit(second, data, tmp_path / "second")
    assert first.seen == second.seen


def test_what_a_trainer_fetches_ahead_does_not_count(prepared):
    data = make(prepared)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    batches = list(itertools.islice(data.train_dataloader(), 3))
    assert data.state_dict()["consumed"] == 0
    data.on_before_batch_transfer(batches[0], 0)
    assert data.state_dict()["consumed"] == 1


def test_position_outside_a_trainer(prepared):
    whole = first_indices(make(prepared).train_dataloader(), 9)
    data = make(prepared)
    stream = data.train_dataloader()
    assert first_indices(stream, 4) == whole[:4]
    state = data.state_dict()
    again = make(prepared)
    again.load_state_dict(state)
    assert first_indices(again.train_dataloader(), 5) == whole[4:]
    assert first_indices(stream, 5) == whole[4:]


def test_reading_batches_leaves_the_global_generator_alone(prepared):
    state = torch.get_rng_state()
    first_indices(make(prepared, num_workers=1).train_dataloader(), 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, ["seed", "4", "3"]),
        ({"batch_size": 8}, ["batch_size", "8", "4"]),
        ({"seq_len": 17}, ["seq_len", "17", "16"]),
        ({"mixture": {"python": 1.0}}, ["mixture", "4096"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_position_of_other_settings_is_refused(prepared, changes, named):
    state = make(prepared).train_dataloader().state_dict() | {"consumed": 3}
    data = make(prepared, **changes)
    data.load_state_dict(state)
    with pytest.raises(ConfigError) as caught:
        data.train_dataloader()
    assert all(word in str(caught.value) for word in named)


def test_a_position_in_other_data_is_refused(prepared):
    state = make(prepared).train_dataloader().state_dict() | {"fingerprint": "f00d" * 16}
    data = make(prepared)
    data.load_state_dict(state)
    with pytest.raises(DataError, match="f00df00df00d"):
        data.train_dataloader()


@pytest.mark.parametrize(("full_check", "found"), [(None, True), (True, True), (False, False)])
def test_large_data_can_be_checked_in_full_or_not(prepared, tmp_path, full_check, found):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    path = folder / "train" / "python" / "shard-00000.bin"
    ids = np.memmap(path, dtype="<u2", mode="r+")
    ids[3] ^= 1
    ids.flush()
    data = make(folder, full_check=full_check)
    if found:
        with pytest.raises(DataError, match=r"shard-00000\.bin: content differs"):
            data.setup("fit")
            data.train_dataloader()
    else:
        data.train_dataloader()


def test_two_ranks_see_the_order_of_one(prepared):
    one = make(prepared, batch_size=8).train_dataloader()
    ranks = [TrainStream(one.windows, one.order, 4, world_size=2, rank=rank) for rank in range(2)]
    for number in (0, 1, 50):
        assert one.batch_windows(number) == [w for stream in ranks for w in stream.batch_windows(number)]
    ranks[0].load_state_dict(one.state_dict() | {"consumed": 7})
    assert ranks[0].consumed == 7


def test_validation_batches_hold_one_domain_and_are_bounded(prepared):
    data = make(prepared, batch_size=2)
    batches = list(data.val_dataloader())
    assert len(batches) == len(data.val_dataloader())
    assert [batch["domain"].unique().numel() for batch in batches] == [1] * len(batches)
    counts = torch.cat([batch["domain"] for batch in batches]).bincount()
    assert counts.tolist() == [3, 3, 3]
    assert batches[0]["input_ids"].shape == (2, SEQ_LEN + 1)
    assert "number" not in batches[0]
    windows = WindowDataset(prepared, "validation", SEQ_LEN)
    for label, domain in enumerate(windows.domains):
        taken = [index for batch in batches for index in batch["index"][batch["domain"] == label].tolist()]
        own = windows.windows_of(domain)
        assert taken == [own[0], own[len(own) // 3], own[len(own) * 2 // 3]]


def test_validation_is_shared_by_ranks_without_overlap(prepared):
    windows = WindowDataset(prepared, "validation", SEQ_LEN)
    passes = [ValidationPass(windows, 4, world_size=2, rank=rank) for rank in range(2)]
    assert len(passes[0]) == len(passes[1])
    taken = [index for one in passes for batch in one.batches for index in batch]
    assert len(taken) == len(set(taken))


def test_a_mixture_draws_its_shares(prepared):
    data = make(prepared, batch_size=64, mixture={"python": 3, "english": 1})
    domains = torch.cat([batch["domain"] for batch in itertools.islice(data.train_dataloader(), 64)])
    assert domains.bincount(minlength=3).tolist() == [1024, 0, 3072]


def test_prepare_data_makes_what_is_missing(corpus, tmp_path):
    config = tmp_path / "data.yaml"
    config.write_text(f"source: {corpus}\nvocab_size: 9999\nshard_tokens: 700\n", encoding="utf-8")
    out = tmp_path / "made"
    data = MonetDataModule(str(out), prepare_config=str(config), vocab_size=280, seq_len=SEQ_LEN)
    data.prepare_data()
    assert data.vocab_size == 280
    assert data.domains == ["english", "italian", "python"]
    assert data.tokenizer_dir == out / "tokenizer"
    other = MonetDataModule(str(out), prepare_config=str(config), vocab_size=290, seq_len=SEQ_LEN)
    with pytest.raises(ConfigError, match=r"vocab_size: 280 there, 290 requested"):
        other.prepare_data()
    config.write_text(f"source: {{a: {corpus / 'english'}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"was prepared with other settings"):
        MonetDataModule(str(out), prepare_config=str(config), vocab_size=280, seq_len=SEQ_LEN).prepare_data()
    gone = MonetDataModule(str(out), source=str(tmp_path / "gone"), seq_len=SEQ_LEN)
    gone.prepare_data()
    assert gone.fingerprint == data.fingerprint


def test_one_process_of_all_nodes_prepares(prepared):
    """Several on a shared disk would find the folder locked, and end their run."""
    assert make(prepared).prepare_data_per_node is False


RANKS = """
import json, sys, torch, lightning as L
from monet.data.loading.datamodule import MonetDataModule
from tests.data.loading.test_datamodule import Recorder
prepared, out, devices, batch_size, steps, resume = sys.argv[1:]
torch.set_num_threads(1)
model = Recorder()
trainer = L.Trainer(
    accelerator="cpu", devices=int(devices), strategy="ddp" if devices != "1" else "auto", max_steps=int(steps),
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0, val_check_interval=2, check_val_every_n_epoch=None,
)
data = MonetDataModule(prepared, seq_len=16, batch_size=int(batch_size), seed=3, max_val_windows=3)
trainer.fit(model, datamodule=data, ckpt_path=resume or None, weights_only=True)
trainer.save_checkpoint(out + ".ckpt", weights_only=False)
json.dump([model.seen, model.validated], open(f"{out}.{trainer.global_rank}.json", "w"))
"""


@pytest.mark.nightly  # tests/distributed trains on two ranks and then on one
def test_two_processes_and_then_one_see_the_order_of_one(prepared, tmp_path):
    def run(name: str, *words: str) -> list[tuple[list[list[int]], list[int]]]:
        command = [sys.executable, str(script), str(prepared), str(tmp_path / name), *words]
        root = Path(__file__).parents[3]
        subprocess.run(command, check=True, timeout=300, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
        return [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"{name}.?.json"))]

    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    (whole,) = run("one", "1", "8", "8", "")
    first, second = run("two", "2", "4", "4", "")
    assert [a + b for a, b in zip(first[0], second[0], strict=True)] == whole[0][:4]
    assert len(first[1]) == len(second[1])
    assert not set(first[1]) & set(second[1])
    (after,) = run("after", "1", "8", "8", str(tmp_path / "two.ckpt"))
    assert after[0] == whole[0][4:]


@pytest.fixture
def uneven(tmp_path) -> Path:
    """A domain of many windows and one that fills none, in two splits."""
    long, short = [list(range(2, 20))] * 30, [[5, 6]]
    documents = {"train": {"a": short, "b": long}, "validation": {"a": short, "b": long}}
    return make_shards(tmp_path / "uneven", documents)


def test_a_domain_shorter_than_a_window_is_left_out_of_training(uneven):
    with pytest.warns(UserWarning, match="training leaves out a: less text than a window"):
        stream = make(uneven).train_dataloader()
    assert {int(label) for batch in itertools.islice(stream, 20) for label in batch["domain"]} == {1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = make(uneven, mixture={"b": 1}).train_dataloader()
    assert {int(label) for batch in itertools.islice(stream, 20) for label in batch["domain"]} == {1}
    with pytest.raises(DataError, match=r"mixture: domain 'a' has 3 training tokens.*remove it from the mixture"):
        make(uneven, mixture={"a": 1, "b": 1}).train_dataloader()
    with pytest.raises(DataError, match="split 'train' of domain 'a' has 3 tokens"):
        make(uneven, seq_len=2000).train_dataloader()


def test_data_without_validation_train_with_a_warning(tmp_path):
    data = make_shards(tmp_path / "data", {"train": {"a": [list(range(2, 20))] * 30}})
    model = Recorder()
    with pytest.warns(UserWarning, match=r"no split 'validation'.*nothing is validated"):
        fit(model, make(data), tmp_path / "run")
    assert (len(model.seen), model.validated) == (28, [])


def test_validation_takes_at_least_one_window_a_rank(prepared):
    windows = WindowDataset(prepared, "validation", SEQ_LEN)
    ranks = min(windows.counts)
    passes = [ValidationPass(windows, 4, max_windows=1, world_size=ranks, rank=rank) for rank in range(ranks)]
    assert {len(one.batches) for one in passes} == {len(windows.chosen)}
    with pytest.raises(DataError, match=f"but {ranks + 1} ranks need one each"):
        ValidationPass(windows, 4, max_windows=1, world_size=ranks + 1)
