"""What a model loses when experts are removed: mean next-token loss per domain before and after, with controls.

Every mask is set against random controls. Intervals are paired
bootstraps: sources (or documents) of a domain are drawn again with replacement, the same draw before and after removal.
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
from monet.eval.attribution.statistics.prompt_hashes import without_hashes
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
    """Refuse what `ablate` could not measure, before anything is computed; errors as there."""
    if not controls.count:
        raise ConfigError("controls.count = 0: a removal is judged beside random controls; ask for at least one")
    if not masks:
        raise DataError("no mask to evaluate; make masks with `monet select`")
    check_labels(list(masks), data.labels)
    if len(data.labels) < 2:
        raise DataError(
            f"the data have only {data.labels}; removal is judged against other domains, prepare two or more"
        )
    unit_of(masks)  # refuses units of two kinds
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
    """Measure every domain before and after removing each label's units, and after random removals like it.

    Losses of a window are kept in `out` as soon as they are known; a second call with the same model, masks, data and
    settings reads them and gives the same numbers.

    Args:
        model: the whole model: a Monet, or any other causal language model that the masks fit.
        masks: per label what removes its units (`monet.eval.attribution.selection.select`). One that removes nothing is
            reported with zeros and does not pass.
        data: text that the masks were not chosen on; holds every label of `masks`, and may hold more.
        out: folder for kept losses and result.json.
        controls: random controls of each mask; None takes the default.
        control_on: measure controls on their target only, or on all domains (dearer by the number of domains).
        bootstrap: how intervals are made; None takes the defaults.
        batch_size: sequences a forward.
        part: of the masks and controls, whose losses are computed and kept; None takes all.
        progress: show a bar on standard error.

    Returns:
        The result; None with a part.

    Raises:
        DataError: a label missing in the data, one domain only, a domain with fewer than two units to draw, or sources
            to draw that are not known.
        CheckpointError: a mask of another model or size.
        ConfigError: no control, or batch_size below 1.
        NonFiniteError: a NaN or infinite loss.
    """
    check_batch_size(batch_size)
    controls = controls or Controls()
    check_request(model, masks, data, controls)
    store = LossStore(Path(out) / "losses", model, batch_size)
    if part is not None:
        choose_unit(bootstrap or Bootstrap(), data)  # refuses before the work what the last call would refuse
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
    """Conditions and the text that each is measured on, the model as it is first."""
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
    """What `ablate` measures, with losses kept in `store` and no result written; arguments as there."""
    model = store.model
    check_request(model, masks, data, controls)
    bootstrap, sources = choose_unit(bootstrap, data)
    asked = passes(masks, data, controls, control_on)
    provenance = {
        **provenance_now(),
        **about_model(model),
        "data_fingerprint": data.fingerprint,
        "data": data.description,
        "masks": {label: without_hashes(mask.provenance) for label, mask in masks.items()},
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
