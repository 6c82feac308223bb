"""`monet convert`: layers of a dense language model become Monet layers."""

from __future__ import annotations

from pathlib import Path

from monet.convert.dense.local import LocalOptions
from monet.convert.dense.options import DistilOptions, ExpertOptions, RunOptions
from monet.convert.dense.stream import TextOptions

DEFAULT_EXPERTS = ExpertOptions()
DEFAULT_TEXT = TextOptions()
DEFAULT_LOCAL = LocalOptions()
DEFAULT_DISTIL = DistilOptions()
DEFAULT_RUN = RunOptions()


def convert(
    model: str,
    data: Path,
    layers: str,
    out: Path,
    experts: ExpertOptions = DEFAULT_EXPERTS,
    text: TextOptions = DEFAULT_TEXT,
    local: LocalOptions = DEFAULT_LOCAL,
    distil: DistilOptions = DEFAULT_DISTIL,
    run: RunOptions = DEFAULT_RUN,
) -> None:
    """Convert layers of a dense language model into Monet layers.

    Stage 1 streams the dense model's states to the new routers and experts; each layer learns to produce its MLP's
    output. Stage 2 trains the whole model to give the dense model's next-token probabilities. OUT is then an ordinary
    model folder with a report. After a kill, the same command continues with the same bits.

    Args:
        model: folder or hub name of the dense model: a LLaMA, or a Mistral or Qwen2 without a sliding window.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        layers: layers to convert, from 0: top:5 (the last five), 22-26, 3,5,7 or all.
        out: folder of the conversion.
    """
    from monet.convert.dense.conversion import Job, load_for, stage_1
    from monet.convert.dense.finish import finish
    from monet.convert.dense.hybrid import is_finished
    from monet.convert.dense.state import keep_settings
    from monet.training.run import RunDirectory

    job = Job(str(model), Path(data), str(layers), Path(out), experts, text, local, distil, run)
    job.check()
    dense, fingerprint = load_for(job)
    lock = RunDirectory(job.layers_folder)
    lock.acquire()
    try:
        keep_settings(job.out, job.settings(fingerprint))
        if is_finished(job.out):
            print(f"{job.out} holds the finished model; its report is {job.out / 'report.md'}")
            return
        results = stage_1(job, dense)
        del dense
        finish(job, results)
    finally:
        lock.release()
