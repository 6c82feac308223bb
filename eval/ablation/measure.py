"""Measure what a model loses when units are removed: mean next-token loss of each domain, before and after.

Every mask is compared with random controls. Intervals are paired bootstraps: the sources (or documents) of a domain
are drawn with replacement, with the same draw before and after removal.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from monet.errors import ConfigError, DataError
from monet.eval.ablation.results import AblationResult
from monet.eval.ablation.verdicts import Measured, summarise
from monet.eval.attribution.statistics.prompt_hashes import mask_notes
from monet.eval.core.achieved import control_notes
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import Condition, conditions, dealt
from monet.eval.core.controls import ControlOn, Controls
from monet.eval.core.held_out import held_out
from monet.eval.core.inputs import LabelledData, check_labels
from monet.eval.core.intervention import Intervention, check_all, unit_of
from monet.eval.core.loading import (
    check_batch_size,
    provenance_now,
    windows_bar,
)
from monet.eval.core.model_origin import about_model
from monet.eval.core.units import choose_unit, with_sources
from monet.eval.core.window_losses import LossStore, WindowLosses, keep_losses
from monet.model.fingerprint import holds_weights
from monet.parts import Part


def check_request(model: nn.Module, masks: Mapping[str, Intervention], data: LabelledData, controls: Controls) -> None:
    """Refuse, before any computation, a request that `ablate` cannot measure; errors as in `ablate`."""
    if not controls.count:
        raise ConfigError("controls.count = 0: a removal is compared with random controls; ask for at least one")
    if not masks:
        raise DataError("no mask to evaluate; make masks with `monet select`")
    check_labels(list(masks), data.labels)
    if len(data.labels) < 2:
        raise DataError(
            f"the data have only {data.labels}; a removal is compared across domains, so prepare two or more"
        )
    unit_of(masks)  # refuses masks of two kinds of units
    check_all(masks, model)


@holds_weights
def ablate(
    model: Any,
    masks: Mapping[str, Intervention],
    data: LabelledData,
    *,
    out: str | os.PathLike[str],
    controls: Controls | None = None,
    control_on: ControlOn = "target",
    bootstrap: Bootstrap | None = None,
    batch_size: int = 8,
    part: Part | None = None,
    progress: bool = True,
) -> AblationResult | None:
    """Measure every domain before and after removing each label's units, and after similar random removals.

    The losses of a window are kept in `out` as soon as they are known. A second call with the same model, masks, data
    and settings reads them and gives the same numbers.

    Args:
        model: the whole model: a Monet, or any other causal language model that the masks fit.
        masks: the removal of each label's units (`monet.eval.attribution.selection.select`). A mask that removes
            nothing is reported with zeros and does not pass.
        data: text that was not used to choose the masks. It has every label of `masks`, and may have more.
        out: folder for kept losses and result.json.
        controls: random controls of each mask; None takes the default.
        control_on: measure controls only on their target, or on all domains, which takes that many times longer.
        bootstrap: settings of the intervals; None takes the defaults.
        batch_size: sequences in each forward pass.
        part: the part of the masks and controls whose losses are computed and kept; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None if `part` is given.

    Raises:
        DataError: a label is missing in the data, the data have only one domain, a domain has fewer than two units to
            draw, or the sources to draw are not known.
        CheckpointError: a mask belongs to another model or size.
        ConfigError: there is no control, or batch_size is below 1.
        NonFiniteError: a loss is NaN or infinite.
    """
    check_batch_size(batch_size)
    controls = controls or Controls()
    check_request(model, masks, data, controls)
    store = LossStore(Path(out) / "losses", model, batch_size)
    if part is not None:
        choose_unit(bootstrap or Bootstrap(), data)  # fails now with an error that would otherwise come after the work
        keep_losses(store, dealt(passes(masks, data, controls, control_on), part), progress)
        return None
    result = measure(
        store, masks, data, controls=controls, control_on=control_on, bootstrap=bootstrap or Bootstrap(),
        progress=progress,
    )  # fmt: skip
    result.save(out)
    return result


def passes(
    masks: Mapping[str, Intervention], data: LabelledData, controls: Controls, control_on: ControlOn
) -> list[tuple[Condition, LabelledData]]:
    """Conditions with the text on which each is measured; the unmasked model is first."""
    control_data = {label: data if control_on == "all" else data.only([label]) for label in masks}
    return [
        (condition, data if condition.label is None or condition.control is None else control_data[condition.label])
        for condition in conditions(masks, controls, data.fingerprint)
    ]


def measure(
    store: LossStore,
    masks: Mapping[str, Intervention],
    data: LabelledData,
    *,
    controls: Controls,
    control_on: ControlOn,
    bootstrap: Bootstrap,
    progress: bool,
) -> AblationResult:
    """Measure like `ablate`, but keep losses in `store` and write no result; arguments as in `ablate`."""
    model = store.model
    check_request(model, masks, data, controls)
    bootstrap, sources = choose_unit(bootstrap, data)
    asked = passes(masks, data, controls, control_on)
    provenance = {
        **provenance_now(),
        **about_model(model),
        "data_fingerprint": data.fingerprint,
        "data": data.description,
        "masks": mask_notes(masks),
        "held_out": held_out([mask.provenance for mask in masks.values()], data),
        "controls": control_notes(controls, [condition for condition, _ in asked], on=control_on),
        "bootstrap": dataclasses.asdict(bootstrap),
        "losses": store.settings,
    }
    with windows_bar(sum(part.num_windows for _, part in asked), "no mask", progress) as bar:
        whole = with_sources(store.losses(None, data, "no mask", bar.update), data.labels, sources)

        def losses() -> Iterator[tuple[Measured, WindowLosses]]:
            for condition, part in asked[1:]:
                bar.set_description(condition.name, refresh=False)
                key = (cast(str, condition.label), condition.control)
                yield key, store.losses(condition.mask, part, condition.name, bar.update)

        return summarise(masks, data.labels, whole, losses(), bootstrap, provenance)
