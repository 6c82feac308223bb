"""Choose what a bootstrap over text resamples: sources, documents or windows, by what is known of the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from monet.errors import DataError
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.inputs import LabelledData
from monet.eval.core.window_losses import WindowLosses

Sources = Mapping[str, Sequence[str | None]]


def choose_unit(bootstrap: Bootstrap, data: LabelledData) -> tuple[Bootstrap, Sources | None]:
    """The bootstrap with the unit that it draws.

    If no unit was requested, it draws sources if the source of every window is known and every label with windows has
    two or more. Otherwise it draws documents.

    Args:
        bootstrap: settings; `unit` is None or the requested unit.
        data: the text to resample.

    Returns:
        The bootstrap with a unit, and the sources of the windows by label; None if the source of any window is unknown.

    Raises:
        DataError: sources were requested but are not known; the message names the labels.
    """
    sources = data.window_sources()
    unknown = [label for label, found in sources.items() if None in found]
    if bootstrap.unit == "source" and unknown:
        raise DataError(
            f"unit source: the source of some documents of {', '.join(map(repr, unknown))} is not known. Prepare the "
            "text again (`monet data prepare --overwrite true`) from records that name their original (--source_key), "
            "or draw documents (--unit document)"
        )
    several = not unknown and all(len(set(found)) >= 2 for found in sources.values() if found)
    unit = bootstrap.unit or ("source" if several else "document")
    return replace(bootstrap, unit=unit), None if unknown else sources


def with_sources(losses: WindowLosses, labels: Sequence[str], sources: Sources | None) -> WindowLosses:
    """The losses with the number of each window's source; unchanged if `sources` is None.

    Args:
        losses: losses of all windows of the data.
        labels: labels of the data.
        sources: sources from `choose_unit`.
    """
    if sources is None:
        return losses
    numbers: dict[str | None, int] = {}
    taken: Counter[str] = Counter()
    source_W = np.empty(len(losses.label_W), np.int64)
    for window, number in enumerate(losses.label_W):
        label = labels[int(number)]
        source_W[window] = numbers.setdefault(sources[label][taken[label]], len(numbers))
        taken[label] += 1
    return replace(losses, source_W=source_W)
