"""One rank of test_router_ranks.py: steps on its share of a batch; it writes its results to its own files.

python -m tests.distributed.router_ranks OUT, with torchrun's environment.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from monet import MonetForCausalLM
from monet.model.losses import RouterLoss
from monet.model.ranks import GlobalBatch
from tests.model.tiny import tiny_config


class Case(NamedTuple):
    statistics: str = "global"
    checkpointing: bool = False
    padded: bool = False


CASES = {"plain": Case(), "saving": Case(checkpointing=True), "padded": Case(padded=True), "local": Case("local")}


def step(case: Case, rank: int, world_size: int) -> dict[str, Tensor]:
    """Losses, statistics and averaged gradients of a step; rank 0 of 1 takes the whole batch."""
    torch.manual_seed(0)
    model = MonetForCausalLM(tiny_config()).double().train()
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # the second half differs: the statistics of each rank are far from those of the whole batch
    tokens = torch.cat([torch.randint(0, 8, (2, 16)), torch.randint(30, 40, (2, 16))])
    mask = torch.ones_like(tokens)
    if case.padded:
        mask[2:, :10] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    num_items = (labels[:, 1:] != -100).sum() / world_size
    if world_size > 1:
        if case.statistics == "global":
            for router in model.routers():
                router.ranks = GlobalBatch()
        tokens, mask, labels = (whole.chunk(world_size)[rank] for whole in (tokens, mask, labels))
    # a sum over tokens: with unequal numbers of tokens, the mean of the ranks' means would differ
    out = model(
        input_ids=tokens, attention_mask=mask if case.padded else None, labels=labels, use_cache=False,
        router_loss=RouterLoss(5.0, 0.5, "firing"), num_items_in_batch=num_items,
    )  # fmt: skip
    out.loss.backward()
    results = {f"buffer.{name}": buffer for name, buffer in model.named_buffers() if ".router." in name}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if world_size > 1:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size
        results[f"gradient.{name}"] = parameter.grad
    results |= {"uniformity": out.uniformity_loss.detach(), "ambiguity": out.ambiguity_loss.detach()}
    results |= {f"fired.{place}": metrics.fired_2HE for place, metrics in enumerate(out.router_metrics)}
    return results | {"active": torch.stack([metrics.active_per_head for metrics in out.router_metrics])}


def main(out: str) -> None:
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    for name, case in CASES.items():
        results = {key: tensor.contiguous() for key, tensor in step(case, rank, world_size).items()}
        save_file(results, f"{out}/{name}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
