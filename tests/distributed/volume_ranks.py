"""train.py with counters: bytes that its collectives send in steps two and three, and bytes held before an update.

python -m tests.distributed.volume_ranks OUT fit ..., with torchrun's environment: OUT-RANK.json gets the bytes, `sent`
by dtype, `held` in all, and the numbers of collectives in both steps, `calls`, by name and dtype.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

# the whole tensor's index among the arguments, its keywords, and how often a large ring sends it
COLLECTIVES: dict[str, tuple[int, tuple[str, ...], int]] = {
    "all_reduce": (0, ("tensor",), 2),
    "all_gather_into_tensor": (0, ("output_tensor",), 1),
    "all_gather_single": (0, ("output", "output_tensor"), 1),
    "all_gather": (0, ("tensor_list",), 1),
    "reduce_scatter_tensor": (1, ("input",), 1),
    "reduce_scatter_single": (1, ("input", "input_tensor"), 1),
    "reduce_scatter": (1, ("input_list",), 1),
    "broadcast": (0, ("tensor",), 1),
    "barrier": (9, (), 0),
}
sent: Counter[str] = Counter()
calls: Counter[str] = Counter()
is_counting = False


def count(name: str) -> None:
    """Make a collective of torch.distributed count its bytes."""
    original = getattr(torch.distributed, name)
    place, keywords, times = COLLECTIVES[name]

    def call(*args: Any, **kwargs: Any) -> Any:
        if is_counting:
            whole = args[place] if len(args) > place else next((kwargs[key] for key in keywords if key in kwargs), [])
            tensors: list[Tensor] = whole if isinstance(whole, list) else [whole]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            share = (torch.distributed.get_world_size() - 1) / torch.distributed.get_world_size()
            dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
            sent[dtype] += times * share * size
            calls[f"{name} {dtype}".strip()] += 1
        return original(*args, **kwargs)

    setattr(torch.distributed, name, call)


def held() -> int:
    """Bytes of all tensors of this process, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, Tensor) and thing.device.type == "cpu":
            whole = thing.to_local() if hasattr(thing, "to_local") else thing
            storage = whole.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def main() -> int:
    out = sys.argv.pop(1)
    for name in COLLECTIVES:
        if hasattr(torch.distributed, name):
            count(name)
    from monet.training.cli import main as train
    from monet.training.module import MonetLightningModule
    from monet.training.private.lightning import inside_step

    begin = MonetLightningModule.on_train_batch_start

    def begin_and_count(module: MonetLightningModule, *args: Any) -> None:
        global is_counting
        is_counting = 1 <= module.trainer.global_step < 3
        begin(module, *args)

    MonetLightningModule.on_train_batch_start = begin_and_count  # type: ignore[method-assign]
    clip, before_updates = MonetLightningModule.configure_gradient_clipping, []

    def clip_and_weigh(module: MonetLightningModule, *args: Any, **kwargs: Any) -> None:
        if not inside_step(module.trainer):
            before_updates.append(held())
        clip(module, *args, **kwargs)

    MonetLightningModule.configure_gradient_clipping = clip_and_weigh  # type: ignore[method-assign]
    code = train()
    figures = {"sent": sent, "held": before_updates[2], "calls": calls}
    Path(f"{out}-{os.environ['RANK']}.json").write_text(json.dumps(figures), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
