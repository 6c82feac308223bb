"""Stage 2: the project's own trainer distils the dense model into the hybrid, in RUN/distil.

The settings are in RUN/distil.yaml, an ordinary file for train.py. So stage 2 can also run on many GPUs or machines:
`torchrun ... train.py fit --config RUN/distil.yaml --run_dir RUN/distil`. Then the command exports its last checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml

from monet.convert.dense.conversion import Job
from monet.convert.export import export
from monet.files import atomic_write_text
from monet.training.checkpoints.checkpoint import newest_valid
from monet.training.settings import ModelShape

_CHECKPOINTS = 10  # in the course of stage 2


def distil_folder(job: Job) -> Path:
    """The run folder of stage 2."""
    return job.out / "distil"


def distilled_model(job: Job) -> Path:
    """The hybrid after stage 2."""
    return distil_folder(job) / "model"


def stage_2(job: Job) -> bool:
    """Start or continue stage 2, and export its end to RUN/distil/model.

    Returns:
        whether the model exists; False if another program is to run the stage (`distil_here: false`).
    Raises:
        SystemExit: the trainer ended with an error, or because of a signal; its exit code.
    """
    if distilled_model(job).is_dir():
        return True
    settings, config = training_settings(job), job.out / "distil.yaml"
    atomic_write_text(config, _HEAD.format(run=job.out) + yaml.safe_dump(settings, sort_keys=False))
    if not job.distil.distil_here:
        step = newest_valid(distil_folder(job) / "checkpoints").step if distil_folder(job).is_dir() else 0
        if step < settings["trainer"]["max_steps"]:
            print(f"stage 2 waits: run {_COMMAND.format(run=job.out)}, then this command again")
            return False
    else:
        _train(["fit", "--config", str(config), "--run_dir", str(distil_folder(job))])
    export(distilled_model(job), run=distil_folder(job), tokenizer=job.tokenizer, dtype=job.run.dtype)
    return True


def training_settings(job: Job) -> dict[str, Any]:
    """The content of distil.yaml."""
    tokens_per_step = job.text.seq_len * job.distil.distil_batch_size
    steps = max(1, -(-job.distil.distil_tokens // tokens_per_step))
    on_gpu = job.arithmetic.device.type == "cuda"
    return {
        "seed_everything": job.text.seed,
        "checkpoint_every": max(1, steps // _CHECKPOINTS),
        "checkpoint_keep": 2,
        **({} if on_gpu else {"cpu_threads": torch.get_num_threads()}),
        "loggers": ["csv"],
        "model": {
            "shape": _shape(job.config),
            "init_from": str(job.local_model),
            "teacher": {
                "model": str(job.model_folder),
                "temperature": job.distil.distil_temperature,
                "weight": job.distil.distil_weight,
            },
            "freeze_dense": job.distil.freeze_dense,
            # every active key learns from the divergence
            "router_loss": {"uniformity_weight": 0.0, "ambiguity_weight": 0.0},
            "optimizer": {"learning_rate": job.distil.distil_rate, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup_fraction": 0.05},
        },
        "data": {
            "data_dir": str(job.data),
            "seq_len": job.text.seq_len,
            "batch_size": job.distil.distil_batch_size,
            "seed": job.text.seed + 1,  # another order than in stage 1
            "mixture": None if job.text.mixture is None else dict(job.text.mixture),
            "document_mask": job.text.document_mask,
            "max_val_windows": job.run.report_windows,
        },
        "trainer": {
            "max_steps": steps,
            "val_check_interval": steps,
            "gradient_clip_val": 1.0,
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if job.arithmetic.half else "32-true",
        },
    }


def _shape(config: Any) -> dict[str, Any]:
    """The trainer's names of a configuration's keys."""
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    known = {
        "architecture": "monet",
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
    }
    wanted = {field.name for field in fields(ModelShape)}
    if not config.dense_layers:
        wanted -= {"intermediate_size", "dense_act"}
    found = {name: known[name] if name in known else getattr(config, name, None) for name in wanted}
    return {name: value for name, value in found.items() if value is not None}


def _train(words: list[str]) -> None:
    """Run train.py's command line in this process.

    Raises:
        SystemExit: it ended with another exit code than 0.
    """
    from monet.training.cli import main

    with _own_words():
        if code := main(words):
            raise SystemExit(code)


@contextmanager
def _own_words() -> Iterator[None]:
    """Hide this program's words, which Lightning would read as its own."""
    words = sys.argv
    sys.argv = words[:1]
    try:
        yield
    finally:
        sys.argv = words


_COMMAND = "train.py fit --config {run}/distil.yaml --run_dir {run}/distil"
_HEAD = """# Stage 2 of a conversion, written by `monet convert`. By hand, also on many GPUs and machines:
#   train.py fit --config {run}/distil.yaml --run_dir {run}/distil
"""
