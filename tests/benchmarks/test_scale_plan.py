"""The simulated ranks run over the real stream and checkpoint code, and their checks find errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from benchmarks import data_exponents, scale_exponents, scale_plan
from benchmarks.scale_exponents import Growth, growth
from monet.data import limits
from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.windows import WindowDataset
from monet.data.storage import shards
from monet.model import ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scale_plan.make_data(tmp_path_factory.mktemp("scale"))


@pytest.mark.slow
def test_all_of_it_runs_on_few_ranks(tmp_path, capsys):
    assert scale_plan.main(["--ranks", "8", "--megabytes", "3", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["tokens"]["lost"] == figures["tokens"]["repeated"] == 0
    assert figures["tokens"]["whole_epochs"] == 2
    # three files of tensors a rank or more, a file of each rank, six of all
    assert figures["checkpoint"]["files"] >= 3 * 8 + 8 + 5
    assert [row["model"] for row in figures["layouts"]] == ["monet_850m_vd", "monet_1.4b_vd", "monet_4.1b_vd"]
    # float32 weights and both moments, and the routers' statistics
    assert figures["layouts"][1]["GB"] == pytest.approx(12 * 1.465157632, rel=1e-3)
    assert "lost 0, repeated 0" in capsys.readouterr().out
    assert len(figures["growth"]) == 10 and all(row["holds"] for row in figures["growth"]), figures["growth"]


def test_a_cost_that_grows_too_fast_is_seen(monkeypatch):
    """A gather into one tensor for each rank."""

    def gather_list(mine_X, world_size, group=None):
        all_WX = mine_X.new_empty(world_size, mine_X.numel())
        dist.all_gather(list(all_WX.unbind()), mine_X, group)
        return all_WX

    monkeypatch.setattr(ranks, "gather_rows", gather_list)
    sizes = (8, 64, 512)
    found = Growth("tensors", "ranks", sizes, [scale_exponents.router_gather(size) for size in sizes], 0.1)
    assert found.exponent > 0.9 and not found.holds
    assert Growth("looks", "ranks", (8, 16), (64, 256), 1.15).exponent == pytest.approx(2)
    assert Growth("nothing", "ranks", (2, 4), (0, 0), 0.1).holds


def test_costs_of_data_that_grow_too_fast_are_seen(monkeypatch):
    """Faults: every shard stays mapped, every rank opens every shard, and a document is encoded as one text."""
    monkeypatch.setattr(shards.MappedFiles, "__init__", lambda self: vars(self).update(_limit=1 << 20, _maps={}))
    assert data_exponents.descriptors(40) == 40
    monkeypatch.setattr(limits, "PIECE_CHARACTERS", 1 << 40)
    sizes = (1 << 18, 1 << 20)
    found = growth("letters", "letters", data_exponents.letters_at_once, sizes, 0.3)
    assert found.exponent == pytest.approx(1) and not found.holds
    monkeypatch.setattr(MonetDataModule, "open_together", lambda data: None)
    found = growth("looks", "ranks", lambda ranks: data_exponents.looks_of_all(ranks, 10), (2, 8), 0.3)
    assert found.exponent == pytest.approx(1) and not found.holds


def test_all_of_many_ranks_write_a_checkpoint_and_none_of_them_much():
    pretrain = Path(scale_plan.__file__).parent.parent / "configs" / "pretrain"
    row = scale_plan.layout([pretrain / "recipe.yaml", pretrain / "monet_4.1b_vd.yaml"], 64)
    assert row["ranks that write"] == 64 and row["most GB of a rank"] < 1.2


def test_sixty_four_threads_read_what_one_process_reads(data):
    batches, windows, _ = scale_plan.read_everything(data, [(64, 3), (16, 2), (64, 1)])
    assert scale_plan.check_tokens(batches, windows)["batches"] == 6


@pytest.mark.parametrize("fault", ["lost", "swapped", "skipped batch"])
def test_a_fault_in_the_stream_is_seen(data, fault):
    windows = WindowDataset(data, "train", 32)
    size, count = scale_plan.GLOBAL_WINDOWS, len(windows) // scale_plan.GLOBAL_WINDOWS + 1
    stream = scale_plan.TrainStream(windows, scale_plan.WindowOrder(windows.counts, seed=3), size)
    batches = [np.array(stream.batch_windows(number)) for number in range(count)]
    scale_plan.check_tokens(batches, windows)
    if fault == "lost":
        batches[2][5] = batches[2][6]
    elif fault == "swapped":
        batches[0][0], batches[1][0] = batches[1][0], batches[0][0]
    else:
        del batches[1]
    with pytest.raises(AssertionError):
        scale_plan.check_tokens(batches, windows)
