"""Trains one recipe: modules for the chosen layers, on the same text in the same order as every other row."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu_layer import processor
from monet.convert.dense.conversion import Job, load_for, open_stream, start_for, train_layers
from monet.convert.dense.local import LocalOptions, LocalTraining, Norms
from monet.convert.dense.measure import HeldOut, held_out_windows, measure_losses
from monet.convert.dense.options import DistilOptions, ExpertOptions, RunOptions
from monet.convert.dense.precision import Arithmetic
from monet.convert.dense.stand_in import StandIn, build_stand_ins
from monet.convert.dense.start import read_samples
from monet.convert.dense.state import LayerCheckpoints, keep_settings
from monet.convert.dense.stream import StateStream, TextOptions
from monet.errors import ConfigError
from monet.eval.core.loading import provenance_now
from monet.eval.core.results import RESULT_NAME
from monet.model.dense_models import load_dense
from monet.training.run import RunDirectory
from studies.recipe.results import DomainLoss, Latents, Routing, RowResult
from studies.recipe.rows import Row
from studies.recipe.skip import fold_skip
from studies.transcoders.module import Transcoder
from studies.transcoders.training import equal_shape, train_transcoders, training_seconds


@dataclass(frozen=True)
class Common:
    """What all rows share.

    Args:
        dense: folder of the dense model.
        data: prepared text.
        layers: layers of every row that does not name its own.
        out: folder of all rows.
        text: windows and their order.
        local: how the layers learn, where the row does not change it.
        run: device and sizes of the measurements.
        sample_tokens: tokens read before the training.
        losses: also measure the next-token loss with the new layers in place.
    """

    dense: Path
    data: Path
    layers: str
    out: Path
    text: TextOptions
    local: LocalOptions
    run: RunOptions
    sample_tokens: int = ExpertOptions.sample_tokens
    losses: bool = False

    def job(self, name: str, row: Row) -> Job:
        """The settings of a row."""
        experts = ExpertOptions(**{"sample_tokens": self.sample_tokens, **row.experts})
        layers = self.layers if row.layers is None else row.layers
        return Job(
            str(self.dense), self.data, layers, self.out / "rows" / name, experts, self.text,
            replace(self.local, **row.local), DistilOptions(distil_tokens=0), self.run,
        )  # fmt: skip


def finished(common: Common, name: str) -> RowResult | None:
    """The kept result of a row; None if it has none."""
    folder = common.out / "rows" / name
    if not (folder / RESULT_NAME).is_file():
        return None
    found = RowResult.load(folder)
    if common.losses and not found.losses:
        print(f"{folder}: trained without --losses, so its losses stay unknown; remove the folder to train it again")
    return found


def run_row(common: Common, name: str, row: Row, base: RowResult | None) -> RowResult:
    """Train and measure a row; a finished one is read, a stopped one continues with the same bits.

    Args:
        common: what all rows share.
        name, row: of `studies.recipe.rows.ROWS`.
        base: the base's result, for rows that need it.
    Raises:
        ConfigError: the row was started with other settings; the message names them.
    """
    job = common.job(name, row)
    job.check()
    dense, fingerprint = load_for(job)
    lock = RunDirectory(job.layers_folder)
    lock.acquire()
    try:
        k = row.k if row.k is not None or base is None else active_units(base)
        own = {"kind": row.kind, "k": k, "skip_rank": row.skip_rank, "raw": row.raw}
        keep_settings(job.out, settings := {**job.settings(fingerprint), **own})
        if (kept := finished(common, name)) is not None:
            return kept
        training, end = _trained(job, dense, row, k)
        del dense
        result = _result(name, row, training, end, settings)
        if common.losses:
            result = replace(result, losses=_losses(job, training.students))
        result.save(job.out)
    finally:
        lock.release()
    shutil.rmtree(job.layers_folder)
    return result


def active_units(base: RowResult) -> int:
    """Hidden units of active experts per token; in the vertical form two halves make one M."""
    mean = sum(one.active_keys for one in base.routing.values()) / len(base.routing)
    return round(mean * base.settings["moe_dim"])


def layer_parameters(job: Job) -> int:
    """Parameters of a Monet layer with its own router."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in StandIn(job.config).parameters())


def _trained(job: Job, dense: Any, row: Row, k: int | None) -> tuple[LocalTraining, HeldOut]:
    if row.kind != "monet":
        assert k is not None, "the base of a transcoder is measured first"
        width = job.dense_config.hidden_size
        shape = equal_shape(layer_parameters(job), width, k, row.kind == "skip transcoder")
        return train_transcoders(job, dense, shape)
    stream = open_stream(job, dense)
    checkpoints = LayerCheckpoints(job.layers_folder)
    return train_layers(
        job, stream, checkpoints, lambda: build_stand_ins(job.config, job.groups), _start(job, stream, row)
    )


def _start(job: Job, stream: StateStream, row: Row) -> Callable[[], tuple[Mapping[int, StandIn], dict[int, Norms]]]:
    """The start of a Monet row, with the row's own changes."""

    def begin() -> tuple[Mapping[int, StandIn], dict[int, Norms]]:
        beginning = stream.state_dict()
        students, norms = start_for(job, stream)
        if row.skip_rank:
            stream.load_state_dict(beginning)
            for layer, sample in read_samples(stream, job.groups, job.experts.sample_tokens, job.config.hidden_size):
                fold_skip(students[layer], sample.x_TD, sample.y_TD, row.skip_rank)
        if row.raw:
            students = {layer: in_own_units(student, job) for layer, student in students.items()}
        return students, norms

    return begin


@torch.no_grad()
def in_own_units(student: StandIn, job: Job) -> StandIn:
    """The same function without standardised coordinates: the weights that `folded` gives.

    Raises:
        ConfigError: the layer shares a router.
    """
    if student.router is None:
        raise ConfigError("a row in the model's own units needs a router in each layer; do not set moe_groups")
    found, folded = StandIn(job.config), student.folded()
    for start, module in (("router.", found.router), ("moe.", found.experts)):
        assert module is not None, "it owns a router"
        module.load_state_dict(
            {name.removeprefix(start): one for name, one in folded.items() if name.startswith(start)}
        )
    return found.train()


class InPlace(nn.Module):
    """A trained module in the place of a dense model's MLP. Casts and moves of the model do not reach it."""

    def __init__(self, student: nn.Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._student, self._arithmetic = [student.eval()], arithmetic

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D) in the data type of the input."""
        with self._arithmetic.autocast():
            out_TD = self._student[0](x_BTD.flatten(0, 1))
        return out_TD.view_as(x_BTD).to(x_BTD.dtype)


def _losses(job: Job, students: Mapping[int, nn.Module]) -> list[DomainLoss]:
    """Losses of the dense model with and without the students in place, on the held-out text."""
    whole, spliced = load_dense(job.model), load_dense(job.model)
    for layer, student in students.items():
        spliced.model.layers[layer].mlp = InPlace(student, job.arithmetic)
    windows = held_out_windows(job.data_module, job.run.report_windows)
    found = measure_losses(whole, spliced, windows, job.data_module.domains, job.arithmetic)
    return [DomainLoss(**vars(one)) for one in found]


def _result(name: str, row: Row, training: LocalTraining, end: HeldOut, settings: dict[str, Any]) -> RowResult:
    students = training.students
    routing = {
        str(layer): Routing(one.active_over_heads, one.keys_of_head, one.pairs) for layer, one in end.activity.items()
    }
    latents = {
        str(layer): Latents(one.shape.latents, one.shape.k, one.use.active, one.shape.latents - one.use.used)
        for layer, one in students.items() if isinstance(one, Transcoder)
    }  # fmt: skip
    wall, cpu = training_seconds(training)
    return RowResult(
        name=name, question=row.question, change=row.change, kind=row.kind, layers=list(students),
        parameters=sum(weight.numel() for one in students.values() for weight in one.parameters()),
        tokens=training.tokens,
        seconds=wall, cpu_seconds=cpu,
        fvu_start={str(layer): value for layer, value in training.start_fvu.items()},
        fvu={str(layer): value for layer, value in end.fvu.items()},
        curve=training.curve, routing=routing, latents=latents, losses=[], held_out_tokens=end.tokens,
        settings=settings, provenance={**provenance_now(), "machine": processor()},
    )  # fmt: skip
