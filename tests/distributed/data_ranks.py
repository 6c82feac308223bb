"""One rank of test_data.py: it starts training and counts its accesses to files while the data open.

python -m tests.distributed.data_ranks DATA OUT, with torchrun's environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning as L
import torch

from benchmarks.data_exponents import counted_looks
from monet.data.loading.datamodule import MonetDataModule
from monet.errors import DataError
from tests.data.loading.test_datamodule import Recorder


class CountedData(MonetDataModule):
    """Counts accesses to files while the ranks open the data."""

    looks = 0

    def open_together(self) -> None:
        with counted_looks() as looks:
            super().open_together()
        # accesses of libraries are not counted
        type(self).looks += len(looks)


def main(data_dir: str, out: str) -> None:
    torch.set_num_threads(1)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    model, data, refused = Recorder(), CountedData(data_dir, seq_len=16, batch_size=2, full_check=False), ""
    try:
        trainer.fit(model, datamodule=data)
    except DataError as error:
        refused = str(error)
    content = {"looks": data.looks, "seen": model.seen, "refused": refused}
    Path(out, f"{trainer.global_rank}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
