"""One rank of test_accumulation.py: a step of many micro-batches in bf16-mixed under each stage of ZeRO.

python -m tests.distributed.accumulation_ranks OUT, with torchrun's environment.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from monet.training.checkpoints.folder_io import FolderCheckpointIO
from monet.training.strategies import Zero
from monet.training.trainer import TogetherTrainer

MICRO_BATCHES = 64
SMALL = 2.0**-9  # bfloat16 rounds 1 + SMALL to 1
CASES: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
    "zero1 offload": {"stage": 1, "offload_optimizer": True},
    "zero2 offload": {"stage": 2, "offload_optimizer": True},
    "zero3 offload": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "zero2 as told": {"stage": 2, "config": {"data_types": {"grad_accum_dtype": "bf16"}}},
}


def inputs(rank: int) -> list[float]:
    """Gradients of a rank's micro-batches before they are averaged: one is large, the others are small."""
    return [1.0 if rank == number == 0 else SMALL for number in range(MICRO_BATCHES)]


class Weights(LightningModule):
    """Four weights whose gradient is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(4, 1, bias=False)
        self.seen: dict[str, float] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch[:, None].expand(-1, 4)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), fused=True)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        if not self.trainer.fit_loop.epoch_loop._should_accumulate():
            self.seen["norm"] = float(self.trainer.strategy.gradient_norm())  # type: ignore[attr-defined]

    def on_train_end(self) -> None:
        state = self.trainer.strategy._state  # type: ignore[attr-defined]
        self.seen["moment"] = float(state.moment("weight/exp_avg").double().norm())


def main(out: str) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name, case in CASES.items():
        trainer = TogetherTrainer(
            accelerator="cpu", devices=2, strategy=Zero(**case), precision="bf16-mixed", max_steps=1, logger=False,
            accumulate_grad_batches=MICRO_BATCHES, plugins=[FolderCheckpointIO()], use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = Weights()
        trainer.fit(module, DataLoader(torch.tensor(inputs(rank)), batch_size=1))  # type: ignore[arg-type]
        Path(out, f"{name}-{rank}.json").write_text(json.dumps(module.seen), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
