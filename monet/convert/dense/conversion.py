"""The two stages of a conversion, in its folder.

RUN/
  config.json, model.safetensors, tokenizer files, README.md   the finished model
  report.json, report.md, report.png                           its report
  convert.json        the settings; a run that continues must have the same
  layers/             stage 1: checkpoints, results.json, and model/, the hybrid after stage 1
  distil/             stage 2: a run folder of train.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monet.configuration_monet import MonetConfig
from monet.convert.dense import report as reports
from monet.convert.dense.architectures import hybrid_config
from monet.convert.dense.hybrid import write_hybrid
from monet.convert.dense.layers import parse_layers, routing_groups
from monet.convert.dense.local import LocalOptions, LocalTraining, Norms, Seconds
from monet.convert.dense.measure import HeldOut, held_out_windows, measure_students
from monet.convert.dense.options import DistilOptions, ExpertOptions, RunOptions
from monet.convert.dense.precision import Arithmetic, arithmetic
from monet.convert.dense.stage import restore, run_stage, whole_state
from monet.convert.dense.stand_in import StandIn, build_stand_ins
from monet.convert.dense.start import start_stand_ins
from monet.convert.dense.state import LAYERS, LayerCheckpoints
from monet.convert.dense.stream import MlpStates, StateStream, TextOptions, check_text
from monet.data.loading.datamodule import MonetDataModule
from monet.devices import choose_device
from monet.errors import CheckpointError
from monet.files import atomic_write_json
from monet.json_text import read_json
from monet.model.adapters import hub_file
from monet.model.dense_models import load_dense, read_dense_config, weights_digest
from monet.model.model_tokenizer import has_tokenizer
from monet.training.language_models import refuse_other_tokenizer

_RESULTS = "results.json"


@dataclass(frozen=True)
class Job:
    """What to convert, and how; the settings of `monet convert`."""

    model: str
    data: Path
    layers_text: str
    out: Path
    experts: ExpertOptions
    text: TextOptions
    local: LocalOptions
    distil: DistilOptions
    run: RunOptions

    @cached_property
    def dense_config(self) -> Any:
        return read_dense_config(self.model)

    @cached_property
    def layers(self) -> list[int]:
        return parse_layers(self.layers_text, self.dense_config.num_hidden_layers)

    @cached_property
    def groups(self) -> list[list[int]]:
        return routing_groups(self.layers, self.experts.moe_groups)

    @cached_property
    def config(self) -> MonetConfig:
        """The hybrid's configuration."""
        config = hybrid_config(self.dense_config, self.layers, self.experts.shape(self.dense_config.intermediate_size))
        config.document_mask = self.text.document_mask
        return config

    @cached_property
    def arithmetic(self) -> Arithmetic:
        return arithmetic(choose_device(self.run.device), self.run.precision)

    @cached_property
    def data_module(self) -> MonetDataModule:
        """The open text, which the model can read."""
        module = self.text.module(self.data)
        check_text(module, self.dense_config.vocab_size, self.dense_config.max_position_embeddings)
        refuse_other_tokenizer(self.model, module.tokenizer_dir, "model")
        return module

    @property
    def model_folder(self) -> Path:
        """The folder with the dense model's files; for a hub name, the one in the local cache."""
        found = hub_file(self.model, "config.json", {})
        return Path(self.model) if found is None else found.parent

    @property
    def layers_folder(self) -> Path:
        return self.out / LAYERS

    @property
    def local_model(self) -> Path:
        """The hybrid after stage 1."""
        return self.layers_folder / "model"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer: the model's own, or the data's copy of it for a model from the hub."""
        own = Path(self.model)
        return own if own.is_dir() and has_tokenizer(own) else self.data_module.tokenizer_dir

    def check(self) -> None:
        """Refuse impossible settings before any work.

        Raises:
            ConfigError, DataError, CheckpointError: the message names the setting.
        """
        self.run.check()
        self.distil.check()
        self.local.check(self.config.moe_experts, self.config.moe_topk)
        _ = self.groups, self.data_module, self.arithmetic

    def settings(self, model_fingerprint: str) -> dict[str, Any]:
        """All that changes the result, by the names of the options."""
        resolved = {**asdict(self.experts), "moe_dim": self.config.moe_dim}
        return {
            "model": Path(self.model).name,
            "model_fingerprint": model_fingerprint,
            "data_fingerprint": self.data_module.fingerprint,
            "layers": self.layers,
            **resolved,
            **asdict(self.text),
            **asdict(self.local),
            **{name: value for name, value in asdict(self.distil).items() if name != "distil_here"},
            "precision": "bf16" if self.arithmetic.half else "float32",
            "dtype": self.run.dtype,
        }


def load_for(job: Job) -> tuple[Any, str]:
    """The dense model in the data type of its files, and its fingerprint."""
    dense = load_dense(job.model)
    return dense, weights_digest(dense)


def open_stream(job: Job, dense: Any) -> StateStream:
    """The stream that stage 1 reads, at its start; it takes the dense model apart."""
    return StateStream(MlpStates(dense, job.layers, job.arithmetic), job.text.module(job.data))


def train_layers(
    job: Job,
    stream: StateStream,
    checkpoints: LayerCheckpoints,
    empty: Callable[[], Mapping[int, nn.Module]],
    start: Callable[[], tuple[Mapping[int, nn.Module], Mapping[int, Norms]]],
) -> tuple[LocalTraining, HeldOut]:
    """Start or continue the training of modules that learn the MLPs, and measure them on held-out text.

    The modules need not be Monet layers. Others, for example transcoders, train on the same text with the same budget.

    Args:
        job: the checked settings.
        stream: at its start.
        checkpoints: where to save, and from where to continue.
        empty: builds the modules for the weights of a checkpoint.
        start: builds and starts the modules, reads `sample_tokens` of the stream, and says what errors are divided by.
    Raises:
        Stopped: a signal ended the training after a checkpoint.
        NonFiniteError: a loss is NaN or infinite.
    """
    checkpoints.remove_leftovers()
    found = checkpoints.newest()
    steps = -(-job.local.tokens // stream.tokens_per_batch)
    seconds = Seconds()
    if found is None:
        with seconds.of("start"):
            students, norms = start()
    else:
        students, norms = empty(), {}
    training = LocalTraining(students, job.groups, norms, job.local, job.arithmetic, steps)
    windows = held_out_windows(job.data_module, job.run.report_windows)
    if found is None:
        training.seconds = seconds
        with training.seconds.of("measurement"):
            before = measure_students(students, stream.model, windows, job.arithmetic)
        training.start_fvu = before.fvu
        checkpoints.save(0, whole_state(training, stream))
        _warn_of_repeats(job, stream)
        print(f"start: FVU {_line(before.fvu)} on held-out text", flush=True)
    else:
        path, state = found
        restore(state, training, stream)
        print(f"stage 1 continues after step {training.step} of {steps} ({path})", flush=True)
    run_stage(training, stream, checkpoints, save_seconds=60 * job.run.save_minutes, progress=job.run.progress)
    with training.seconds.of("measurement"):
        end = measure_students(students, stream.model, windows, job.arithmetic)
    print(f"stage 1: FVU {_line(end.fvu)} on held-out text after {training.tokens:,} tokens", flush=True)
    return training, end


def stage_1(job: Job, dense: Any) -> dict[str, Any]:
    """Start or continue stage 1, and write RUN/layers/model; returns its results, also after a repeated call.

    Args:
        job: the checked settings.
        dense: the dense model; stage 1 takes it apart.
    Raises:
        Stopped: a signal ended the stage after a checkpoint.
    """
    results = job.layers_folder / _RESULTS
    if results.is_file() and job.local_model.is_dir():
        return read_json(results, CheckpointError)
    stream = open_stream(job, dense)
    training, end = train_layers(
        job, stream, LayerCheckpoints(job.layers_folder),
        lambda: build_stand_ins(job.config, job.groups), lambda: start_for(job, stream),
    )  # fmt: skip
    content = _results(training, end)
    if not job.local_model.is_dir():
        converted = {layer: {name: tensor.cpu() for name, tensor in student.folded().items()}
                     for layer, student in training.students.items() if isinstance(student, StandIn)}  # fmt: skip
        whole = load_dense(job.model)  # stage 1 dropped the upper layers, and may have rounded the weights
        dtype = getattr(torch, "float32" if job.distil.distil_tokens else job.run.dtype)
        write_hybrid(job.local_model, whole, job.config, job.layers, converted, job.tokenizer, dtype)
    atomic_write_json(results, content)
    return content


def start_for(job: Job, stream: StateStream) -> tuple[dict[int, StandIn], dict[int, Norms]]:
    """Stand-ins with their start weights; see `start_stand_ins`."""
    return start_stand_ins(
        job.config, job.groups, stream, init=job.experts.init, heads=job.experts.heads,
        sample_tokens=job.experts.sample_tokens, seed=job.text.seed,
    )  # fmt: skip


def _results(training: LocalTraining, end: HeldOut) -> dict[str, Any]:
    return {
        "tokens": training.tokens,
        "fvu_start": {str(layer): value for layer, value in training.start_fvu.items()},
        "fvu": {str(layer): value for layer, value in end.fvu.items()},
        "activity": {str(layer): asdict(one) for layer, one in end.activity.items()},
        "curve": training.curve,
        "wall": training.seconds.wall,
        "cpu": training.seconds.cpu,
        "held_out_tokens": end.tokens,
    }


def _warn_of_repeats(job: Job, stream: StateStream) -> None:
    wanted = job.local.tokens + job.experts.sample_tokens
    if wanted > stream.num_tokens:
        print(
            f"{job.data}: {stream.num_tokens:,} training tokens, so stage 1 reads them "
            f"{wanted / stream.num_tokens:.1f} times; new text teaches more than repeated text",
            flush=True,
        )


def _line(fvu: dict[int, float]) -> str:
    return ", ".join(f"{value:.3f} (layer {layer})" for layer, value in fvu.items())


def parts_of(content: dict[str, Any]) -> list[reports.Part]:
    """The times of stage 1."""
    tokens = {"start": 0, "measurement": content["held_out_tokens"]}
    return [
        reports.Part(f"stage 1: {name}", tokens.get(name, content["tokens"]), wall, content["cpu"][name])
        for name, wall in content["wall"].items()
    ]
