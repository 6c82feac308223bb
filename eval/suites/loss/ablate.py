"""`monet ablate`: the loss of every domain before and after each removal, compared with random controls."""

from __future__ import annotations

from pathlib import Path

from monet.eval.ablation.measure import ablate
from monet.eval.attribution.control_options import ControlOptions
from monet.eval.attribution.selection import load_masks
from monet.eval.core.announce import announce
from monet.eval.core.controls import ControlOn
from monet.eval.core.held_out import Protocol, check_protocol, evaluation_split, texts_of
from monet.eval.core.options import DividedCompute, TextIntervals, WindowOptions


def run(
    model: str,
    data: Path,
    masks: Path,
    out: Path,
    split: str | None = None,
    protocol: Protocol = "held_out",
    controls: ControlOptions = ControlOptions(),  # noqa: B008 - frozen
    control_on: ControlOn = "target",
    windows: WindowOptions = WindowOptions(),  # noqa: B008 - frozen
    intervals: TextIntervals = TextIntervals(),  # noqa: B008 - frozen
    compute: DividedCompute = DividedCompute(),  # noqa: B008 - frozen
) -> None:
    """Measure what every domain loses when each domain's experts are removed, compared with random removals.

    Writes OUT/result.json, which `monet report` turns into tables and a heat map. Finished losses are kept in
    OUT/losses, so the same command continues after a kill.

    Args:
        model: Hugging Face folder or name of the model for which the masks were made.
        data: folder of `monet data prepare`, made with the model's tokenizer.
        masks: folder of `monet select`, or one mask file in it.
        out: folder for result.json and kept losses.
        split: split of DATA to evaluate on, default "evaluate"; choose masks on another split.
        protocol: held_out evaluates on SPLIT. same evaluates on the split on which the masks were chosen, as the paper
            seems to do; this favours the masks, and the result records `held_out: false`.
        controls: random controls of each mask.
        control_on: measure controls only on their target, or on all domains, which takes that many times longer.

    Raises:
        CheckpointError: the model does not exist, or the masks belong to another model.
        ConfigError: an option is out of range.
        DataError: the split does not exist or lacks a domain of the masks, or the data have another tokenizer.
        NonFiniteError: a loss is NaN or infinite; the message names mask, domain and window.
    """
    bootstrap = intervals.bootstrap()
    part = compute.own_part
    loaded = compute.load(model)
    chosen = load_masks(masks, model=loaded)
    texts = [one for mask in chosen.values() for one in texts_of(mask.provenance)]
    text = windows.open(data, evaluation_split(protocol, split, texts), loaded)
    check_protocol(protocol, texts, text)
    result = ablate(
        loaded,
        chosen,
        text,
        out=out,
        controls=controls.open(loaded),
        control_on=control_on,
        bootstrap=bootstrap,
        batch_size=compute.batch_size,
        part=part,
        progress=compute.progress,
    )
    announce(result, out)
