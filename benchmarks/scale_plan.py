"""`python -m benchmarks.scale_plan`: runs 64 ranks in one process over the real data stream and checkpoint code.

Every rank is a thread with its own stream and checkpoint writer; only training itself is left out. The run is stopped
and continued on other numbers of ranks. The command checks that every window of every epoch is read exactly once, over
all ranks and restarts, in the order of one process. It prints the cost of the ranks' metadata and the growth of counted
costs, see benchmarks/scale_exponents.py and benchmarks/data_exponents.py. The exit code is 1 if a cost grows too fast.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import data_exponents
from benchmarks.scale_exponents import COLUMNS, growths
from benchmarks.tables import markdown
from benchmarks.thread_ranks import ThreadRanks, on_all
from monet.data.loading.loaders import TrainStream
from monet.data.loading.order import WindowOrder
from monet.data.loading.windows import WindowDataset
from monet.data.preparation.prepare import prepare
from monet.errors import CheckpointError
from monet.files import atomic_write_json
from monet.training.checkpoints import tensor_files
from monet.training.checkpoints.checkpoint import newest_valid, step_folder, verify_checkpoint
from monet.training.checkpoints.folder_io import PREFIX, FolderCheckpointIO, own_tensors
from monet.training.checkpoints.states import MOMENTS
from monet.training.configs import read_training_config
from monet.training.language_models import class_of, config_json
from monet.training.settings import ModelShape

GLOBAL_WINDOWS = 128  # windows of a step, with any number of ranks
VOCABULARY = 512
DOCUMENTS = 200  # in each domain


def read_everything(
    data: Path, plan: list[tuple[int, int]], seq_len: int = 32
) -> tuple[list[np.ndarray], WindowDataset, dict[str, float]]:
    """Read the data on changing numbers of ranks.

    Args:
        data: prepared folder.
        plan: (ranks, batches) of each start; each start continues from the state of the previous one.
        seq_len: tokens of a window.
    Returns:
        The window ids of each batch over all ranks, in the order of the positions; the windows; seconds.
    """
    windows = WindowDataset(data, "train", seq_len)
    order = WindowOrder(windows.counts, seed=3)
    states: list[dict[str, Any]] = []
    batches: list[np.ndarray] = []
    seconds = {"position saved, all ranks": 0.0, "position loaded, all ranks": 0.0, "batch numbers to ids, a rank": 0.0}
    for world_size, count in plan:
        size = GLOBAL_WINDOWS // world_size
        streams = [TrainStream(windows, order, size, world_size=world_size, rank=rank) for rank in range(world_size)]
        started = time.perf_counter()
        if states:
            for stream in streams:
                stream.load_state_dict(states[0])
        seconds["position loaded, all ranks"] += time.perf_counter() - started

        def read(ranks: ThreadRanks, streams: list[TrainStream] = streams, count: int = count) -> list[np.ndarray]:
            stream = streams[ranks.rank]
            found = []
            for _, batch in zip(range(count), stream, strict=False):
                for index, ids in zip(batch["index"].tolist(), batch["input_ids"], strict=True):
                    # the delivered window is the text at that place
                    assert torch.equal(ids, windows[index]["input_ids"])
                found.append(batch["index"].numpy())
            return found

        parts = on_all(world_size, read)
        batches += [np.concatenate([part[n] for part in parts]) for n in range(count)]
        started = time.perf_counter()
        for _ in range(100):
            streams[-1].batch_windows(count)
        seconds["batch numbers to ids, a rank"] = (time.perf_counter() - started) / 100
        started = time.perf_counter()
        states = [json.loads(json.dumps(stream.state_dict())) for stream in streams]
        seconds["position saved, all ranks"] += time.perf_counter() - started
        assert all(state == states[0] for state in states), "ranks disagree about the position"
    return batches, windows, seconds


def check_tokens(batches: list[np.ndarray], windows: WindowDataset) -> dict[str, int]:
    """Compare the batches with those of one process and with the text.

    Raises:
        AssertionError: a batch differs from that of one process, or a token was lost or repeated within an epoch.
    """
    alone = TrainStream(windows, WindowOrder(windows.counts, seed=3), GLOBAL_WINDOWS)
    for number, ids in enumerate(batches):
        assert ids.tolist() == alone.batch_windows(number), f"batch {number} is not that of one process"
    read = np.concatenate(batches)
    epochs = len(read) // len(windows)
    for epoch in range(epochs):
        times = np.bincount(read[epoch * len(windows) : (epoch + 1) * len(windows)], minlength=len(windows))
        assert (times == 1).all(), f"epoch {epoch}: {np.sum(times == 0)} windows lost, {np.sum(times > 1)} repeated"
    tokens = [np.zeros(count * windows.seq_len, dtype=np.int64) for count in windows.counts]
    for window in range(len(windows)):
        domain, start, _ = windows.locate(window)
        tokens[windows.chosen.index(domain)][start : start + windows.seq_len] += 1
    assert all((count == 1).all() for count in tokens), "windows overlap or leave a gap"
    return {"batches": len(batches), "windows": len(windows), "whole_epochs": epochs,
            "tokens": len(read) * windows.seq_len, "lost": 0, "repeated": 0}  # fmt: skip


def save_and_read(folder: Path, world_size: int, megabytes: int, files: int) -> dict[str, float]:
    """Write one checkpoint with all ranks and this many files; then check it as a start does, and let a rank fail.

    Returns:
        Seconds of the slowest rank, and how many files there are.
    """
    count = max(files // 3, 1)
    rows = (megabytes << 20) // 3 // count // 4 // 256
    weights = {PREFIX + f"layers.{n}.weight": torch.full((rows, 256), float(n)) for n in range(count)}
    moments = {f"layers.{n}.weight/{key}": torch.full((rows, 256), n + 0.5) for n in range(count) for key in MOMENTS}
    names = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    checkpoints = folder / "checkpoints"

    def save(ranks: ThreadRanks, step: int, broken: int | None = None) -> float:
        own = own_tensors(ranks.world_size, ranks.rank, names, moments)
        content: dict[str, Any] = {
            "state_dict": {n: t if n.removeprefix(PREFIX) in own else t.to("meta") for n, t in weights.items()},
            "moments": {n: t if n in own else t.to("meta") for n, t in moments.items()},
            "config": {"model_type": "monet"}, "rank_state": {"rank": ranks.rank}, "global_step": step,
        }  # fmt: skip
        if ranks.rank == broken:
            content["rank_state"] = object()
        io = FolderCheckpointIO()
        io.ranks = ranks
        started = time.perf_counter()
        io.save_checkpoint(content, step_folder(checkpoints, step))
        return time.perf_counter() - started

    seconds = {"save, slowest rank": max(on_all(world_size, lambda ranks: save(ranks, 1)))}

    def fail(ranks: ThreadRanks) -> bool:
        try:
            save(ranks, 2, broken=world_size // 2)
        except CheckpointError as error:
            return f"rank {world_size // 2}" in str(error)
        return False

    assert all(on_all(world_size, fail)), "a rank did not learn of the failed one"
    assert newest_valid(checkpoints).folder == step_folder(checkpoints, 1), "a failed checkpoint was published"
    started = time.perf_counter()
    verify_checkpoint(step_folder(checkpoints, 1), full=False)
    seconds["sizes against the manifest"] = time.perf_counter() - started
    started = time.perf_counter()
    verify_checkpoint(step_folder(checkpoints, 1), full=True)
    seconds["hashes against the manifest"] = time.perf_counter() - started

    def load(ranks: ThreadRanks) -> float:
        io = FolderCheckpointIO()
        io.ranks = ranks
        begun = time.perf_counter()
        found = io.load_checkpoint(step_folder(checkpoints, 1))
        assert found["rank_state"] == {"rank": ranks.rank} and found["state_dict"].keys() == weights.keys()
        elapsed = time.perf_counter() - begun
        for name in sorted(own_tensors(ranks.world_size, ranks.rank, names, moments))[:1]:
            stored = found["moments"][name] if name in moments else found["state_dict"][PREFIX + name]
            assert torch.equal(stored, moments.get(name, names.get(name)))  # type: ignore[arg-type]
        return elapsed

    seconds["open and read the state, slowest rank"] = max(on_all(world_size, load))
    return {**seconds, "files": len(list(step_folder(checkpoints, 1).iterdir()))}


def layout(config_files: list[Path], world_size: int) -> dict[str, Any]:
    """Which rank writes which files of a real model's checkpoint, as each rank computes it; nothing is allocated."""
    config = ModelShape(**read_training_config(config_files).model.shape.as_dict()).config()
    with torch.device("meta"):
        model = class_of(config)(config)
    started = time.perf_counter()
    weights = dict(model.state_dict())
    moments = {f"{name}/{key}": p for name, p in model.named_parameters() for key in MOMENTS}
    files = tensor_files.plan("model", weights, world_size)
    files += tensor_files.plan("optimizer", moments, world_size, first_owner=len(files))
    seconds = time.perf_counter() - started
    both = {**weights, **moments}
    written = [0] * world_size
    for file in files:
        written[file.owner] += sum(both[name].numel() * both[name].element_size() for name in file.tensors)
    assert sorted(name for file in files for name in file.tensors) == sorted(both), "a tensor has no file, or two"
    return {
        "model": config_files[-1].stem, "GB": sum(written) / 1e9, "files": len(files),
        "ranks that write": sum(size > 0 for size in written), "most GB of a rank": max(written) / 1e9,
        "config.json bytes": len(json.dumps(config_json(config))), "layout, s": seconds,
    }  # fmt: skip


LAYOUT = {"model": "", "GB": ".1f", "files": "", "ranks that write": "", "most GB of a rank": ".2f",
          "config.json bytes": "", "layout, s": ".3f"}  # fmt: skip


def _table(seconds: dict[str, float]) -> str:
    rows = [{"what": what, "ms": 1e3 * value} for what, value in seconds.items()]
    return markdown(rows, {"what": "", "ms": ".1f"})


def make_data(folder: Path) -> Path:
    """Some prepared text that consists only of numbers."""
    (folder / "text").mkdir()
    for domain in ("even", "odd"):
        (folder / "text" / domain).mkdir()
        for document in range(DOCUMENTS):
            words = " ".join(str(document * number % 997) for number in range(1 + document % 7, 400))
            (folder / "text" / domain / f"{document}.txt").write_text(words, encoding="utf-8")
    prepare(str(folder / "text"), folder / "data", vocab_size=VOCABULARY)
    return folder / "data"


def main(argv: list[str] | None = None) -> int:
    """Run everything and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64, help="threads that stand for ranks; a power of two to 128")
    parser.add_argument("--megabytes", type=int, default=96, help="size of the checkpoint that is written")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)
    if GLOBAL_WINDOWS % options.ranks:
        parser.error(f"--ranks {options.ranks}: must divide {GLOBAL_WINDOWS}")
    torch.set_num_threads(1)
    found = growths() + data_exponents.growths()
    pretrain = Path(__file__).resolve().parent.parent / "configs" / "pretrain"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_data(folder)
        total = len(WindowDataset(data, "train", 32)) * 2 // GLOBAL_WINDOWS + 1  # a little over two epochs
        first, second, third = total // 3, total // 4, total // 5
        starts = [(options.ranks, first), (options.ranks // 2 or 1, second), (1, third),
                  (options.ranks, total - first - second - third)]  # fmt: skip
        batches, windows, data_seconds = read_everything(data, starts)
        tokens = check_tokens(batches, windows)
        before, tensor_files.FILE_BYTES = tensor_files.FILE_BYTES, (options.megabytes << 20) // (3 * options.ranks)
        try:
            saved = save_and_read(folder, options.ranks, options.megabytes, 3 * options.ranks)
        finally:
            tensor_files.FILE_BYTES = before
    layouts = [layout([pretrain / "recipe.yaml", pretrain / f"{size}.yaml"], options.ranks)
               for size in ("monet_850m_vd", "monet_1.4b_vd", "monet_4.1b_vd")]  # fmt: skip
    print(f"ranks and batches of the four starts: {', '.join(f'{w} x {n}' for w, n in starts)}")
    print(", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in tokens.items()), end="\n\n")
    print(_table(data_seconds), end="\n\n")
    print(
        f"checkpoint of {options.megabytes} MB in {saved['files']} files by {options.ranks} ranks; one that failed was"
    )
    print("refused by all of them\n")
    print(_table({what: value for what, value in saved.items() if what != "files"}), end="\n\n")
    print(markdown(layouts, LAYOUT), end="\n\n")
    print(markdown([growth.row() for growth in found], COLUMNS))
    if options.json:
        figures = {"tokens": tokens, "data_seconds": data_seconds, "checkpoint": saved, "layouts": layouts,
                   "growth": [growth.row() for growth in found]}  # fmt: skip
        atomic_write_json(options.json, figures)
    for growth in found:
        if not growth.holds:
            print(f"{growth.what}: exponent {growth.exponent:.2f}, more than {growth.most:.2f}", file=sys.stderr)
    return 0 if all(growth.holds for growth in found) else 1


if __name__ == "__main__":
    sys.exit(main())
