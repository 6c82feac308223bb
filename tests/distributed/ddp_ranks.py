"""One rank of test_ddp.py: a training step of a wrapped model on its half of a batch.

python -m tests.distributed.ddp_ranks OUT, with torchrun's environment.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from monet import ExpertMask, MonetForCausalLM
from monet.kernels import limits
from monet.model.losses import RouterLoss
from tests.model.tiny import tiny_model, tokens

# Options of a step, each used separately.
CASES: dict[str, dict[str, Any]] = {
    "horizontal": {"form": "horizontal"},
    "vertical": {"form": "vertical"},
    "checkpointed": {"form": "vertical", "checkpointing": True},
    "masked": {"form": "horizontal", "masked": True},
    "frozen router": {"form": "vertical", "frozen": True},
}


def build(form: str, checkpointing: bool = False, masked: bool = False, frozen: bool = False) -> MonetForCausalLM:
    """The same model in every process; it runs the code for real sizes at any size."""
    limits.LEAN_FROM_ELEMENTS = 0
    model = tiny_model(form).double().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    if masked:
        model.set_expert_mask(ExpertMask.random(model.config, 30, seed=0))
    if frozen:
        model.freeze_router()
    return model


def loss_of_half(model: torch.nn.Module, half: int) -> Tensor:
    """A training loss on two of four sequences."""
    ids = tokens(B=4)[2 * half : 2 * half + 2]
    return model(ids, labels=ids, router_loss=RouterLoss(0.1, 0.1, "firing"), use_cache=False).loss


def main(out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, case in CASES.items():
        model = DistributedDataParallel(build(**case))
        loss_of_half(model, dist.get_rank()).backward()
        gradients = {name: weight.grad for name, weight in model.module.named_parameters() if weight.grad is not None}
        save_file(gradients, os.path.join(out, f"{name}-{dist.get_rank()}.safetensors"))
        # If DDP outlives the group, torch can wait for a gloo thread that itself waits for the interpreter's lock.
        del model
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
