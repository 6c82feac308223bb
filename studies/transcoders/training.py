"""Trains transcoders on the text, in the order and with the optimiser of a conversion's first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from monet.convert.dense.conversion import Job, open_stream, train_layers
from monet.convert.dense.local import LocalOptions, LocalTraining, Norms
from monet.convert.dense.measure import HeldOut
from monet.convert.dense.options import DistilOptions, ExpertOptions, RunOptions
from monet.convert.dense.report import Report
from monet.convert.dense.start import layer_generator, read_samples
from monet.convert.dense.state import LayerCheckpoints
from monet.convert.dense.stream import StateStream, TextOptions
from monet.errors import ConfigError
from studies.transcoders.module import Shape, Transcoder, start

Read = TypeVar("Read", ExpertOptions, TextOptions, LocalOptions)
TOLERANCE = 0.02  # largest relative difference between two numbers of parameters


def job_like(run: Path, dense: Path, data: Path, out: Path, device: str = "auto") -> Job:
    """The settings of a finished conversion, for other modules of the same layers.

    Args:
        run: folder of `monet convert`.
        dense: folder of the dense model.
        data: the text that the conversion read.
        out: folder of the new modules.
        device: where to train.
    Raises:
        CheckpointError: the folder has no report.
    """
    report = Report.load(run)
    told = report.settings
    experts = replace(_read(ExpertOptions, told), moe_groups=1)
    return Job(
        str(dense), data, ",".join(map(str, report.layers)), out, experts, _read(TextOptions, told),
        _read(LocalOptions, told), DistilOptions(distil_tokens=0),
        RunOptions(device=device, precision=told["precision"]),
    )  # fmt: skip


def _read(kind: type[Read], settings: Mapping[str, Any]) -> Read:
    """The options of one group."""
    return kind(**{field.name: settings[field.name] for field in fields(kind)})


def refuse_other_text(run: Path, job: Job, model_fingerprint: str) -> None:
    """Refuse another dense model or other text than the conversion had.

    Raises:
        ConfigError: names what differs.
    """
    told = Report.load(run).settings
    for name, mine in (("model_fingerprint", model_fingerprint), ("data_fingerprint", job.data_module.fingerprint)):
        if told[name] != mine:
            raise ConfigError(
                f"{run} was converted with {name} {told[name]}, but here it is {mine}; give the same model and text"
            )


def equal_shape(parameters: int, width: int, k: int, skip: bool) -> Shape:
    """A transcoder with as many parameters as a layer of a conversion; prints both numbers.

    Raises:
        ConfigError: no number of latents comes within TOLERANCE.
    """
    shape = Shape.of_parameters(parameters, width, k, skip)
    off = shape.parameters / parameters - 1
    print(f"transcoder: {shape.latents:,} latents, {shape.parameters:,} parameters a layer, {off:+.2%} against "
          f"{parameters:,} of a Monet layer with its router", flush=True)  # fmt: skip
    if abs(off) > TOLERANCE:
        raise ConfigError(f"{shape.parameters:,} parameters differ from {parameters:,} by more than {TOLERANCE:.0%}")
    return shape


def train_transcoders(job: Job, dense: Any, shape: Shape) -> tuple[LocalTraining, HeldOut]:
    """Start or continue the training, with checkpoints in the job's folder; see `train_layers`.

    Afterwards each transcoder's `use` is that on the held-out text.
    """
    stream = open_stream(job, dense)

    def begin() -> tuple[Mapping[int, Transcoder], dict[int, Norms]]:
        return _started(job, stream, shape)

    checkpoints = LayerCheckpoints(job.layers_folder)
    return train_layers(job, stream, checkpoints, lambda: {layer: Transcoder(shape) for layer in job.layers}, begin)


def _started(job: Job, stream: StateStream, shape: Shape) -> tuple[dict[int, Transcoder], dict[int, Norms]]:
    """Transcoders that start from the sample that Monet layers start from, so both read the same text afterwards."""
    found: dict[int, Transcoder] = {}
    norms: dict[int, Norms] = {}
    for layer, sample in read_samples(stream, job.groups, job.experts.sample_tokens, shape.width):
        found[layer], norms[layer] = Transcoder(shape), sample.norms
        start(found[layer], sample.x_TD, sample.y_TD, layer_generator(job.text.seed, layer))
    return found, norms


def training_seconds(training: LocalTraining) -> tuple[float, float]:
    """Wall and processor seconds of start and training, without measurements."""
    wall, cpu = (
        sum(seconds for part, seconds in of.items() if part != "measurement")
        for of in (training.seconds.wall, training.seconds.cpu)
    )
    return wall, cpu
