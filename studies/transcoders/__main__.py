"""Trains TopK transcoders next to a conversion: the same layers, text, order, parameters and steps.

    python -m studies.transcoders --like runs/knowledge --dense data/smollm2 --data data/subjects \
        --out runs/transcoders [--skip] [--k 64]

Everything that a conversion by `monet convert` decided is taken from its folder, --like. Without --k a token has as
many active latents as hidden units of active experts in the conversion. After a kill, the same command continues with
the same bits.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monet.convert.dense.conversion import load_for
from monet.convert.dense.local import LocalTraining
from monet.convert.dense.measure import HeldOut
from monet.convert.dense.report import Report
from monet.convert.dense.state import keep_settings
from monet.eval.core.loading import provenance_now
from monet.training.run import RunDirectory
from studies.transcoders import folder
from studies.transcoders.module import Shape, Transcoder
from studies.transcoders.training import equal_shape, job_like, refuse_other_text, train_transcoders, training_seconds


def active_units(report: Report) -> int:
    """Hidden units of active experts per token, mean over the routers; two halves in the vertical form make one M."""
    mean = sum(group.active_over_heads for group in report.groups) / len(report.groups)
    return round(mean * report.settings["moe_dim"])


def parameters_of_layer(report: Report) -> int:
    """Parameters of one converted layer with its share of a router."""
    return round(report.parameters["routers and experts"] / len(report.layers))


def trained_of(training: LocalTraining, end: HeldOut, shape: Shape, **others: Any) -> folder.Trained:
    """The numbers of a finished training.

    Args:
        training, end, shape: of `train_transcoders`.
        others: the other fields of the result.
    """
    modules = {str(layer): one for layer, one in training.students.items() if isinstance(one, Transcoder)}
    wall, cpu = training_seconds(training)
    return folder.Trained(
        layers=list(training.students), shape=shape, parameters=shape.parameters, tokens=training.tokens,
        fvu_start={str(layer): value for layer, value in training.start_fvu.items()},
        fvu={str(layer): value for layer, value in end.fvu.items()},
        active={layer: one.use.active for layer, one in modules.items()},
        dead={layer: shape.latents - one.use.used for layer, one in modules.items()},
        held_out_tokens=end.tokens,
        seconds=wall, cpu_seconds=cpu,
        provenance=provenance_now(), **others,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or say that it is done."""
    given = parser().parse_args(arguments)
    if folder.is_finished(given.out):
        print(folder.Trained.load(given.out).sentence)
        return
    report = Report.load(given.like)
    job = job_like(given.like, given.dense, given.data, given.out, given.device)
    job.check()
    dense, fingerprint = load_for(job)
    refuse_other_text(given.like, job, fingerprint)
    k = active_units(report) if given.k is None else given.k
    like = parameters_of_layer(report)
    shape = equal_shape(like, job.dense_config.hidden_size, k, given.skip)
    lock = RunDirectory(job.layers_folder)
    lock.acquire()
    try:
        settings = {**job.settings(fingerprint), "latents": shape.latents, "k": k, "skip": given.skip}
        keep_settings(given.out, settings)
        training, end = train_transcoders(job, dense, shape)
        trained = trained_of(
            training, end, shape, model=report.model, model_fingerprint=fingerprint, parameters_like=like,
            seed=job.text.seed, settings=settings,
        )  # fmt: skip
        folder.save(given.out, trained, training.students)
    finally:
        lock.release()
    shutil.rmtree(job.layers_folder)
    print(trained.sentence)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--like", type=Path, required=True, help="folder of the conversion to compare with")
    found.add_argument("--dense", type=Path, required=True, help="folder of the dense model")
    found.add_argument("--data", type=Path, required=True, help="the prepared text that the conversion read")
    found.add_argument("--out", type=Path, required=True, help="folder for the transcoders")
    found.add_argument("--skip", action="store_true", help="with an affine skip path")
    found.add_argument("--k", type=int, help="most active latents of a token (default: as the conversion)")
    found.add_argument("--device", default="auto", help="cpu, cuda, ...; auto takes a GPU if there is one")
    return found


if __name__ == "__main__":
    main()
