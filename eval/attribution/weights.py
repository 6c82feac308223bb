"""Each expert's mass or activity, by domain, from a file of `monet stats`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from monet.errors import DataError
from monet.masks.controls import ControlKind

if TYPE_CHECKING:
    from torch import nn

    from monet.eval.attribution.stats import ExpertStatistics


def weights_of(
    source: str | os.PathLike[str] | ExpertStatistics, kind: ControlKind, model: nn.Module | None = None
) -> dict[str, Tensor]:
    """(R, E, E) float64 weights by label for `monet.masks.controls.control_keep`; the key "" holds those over all text.

    Args:
        source: file of `monet stats`, or loaded statistics.
        kind: mass takes mean routing weights; activity takes the share of tokens at which an expert fires.
        model: if given, statistics of another model are refused.

    Raises:
        CheckpointError: the statistics are unreadable, or belong to another model.
        DataError: a label has no token, or activity is requested without firing counts.
    """
    from monet.eval.attribution.stats import ExpertStatistics

    given = isinstance(source, ExpertStatistics)
    statistics = source if given else ExpertStatistics.load(source, model=cast(Any, model))
    statistics.means()  # refuses a label without a token
    sums_CREE = statistics.sums_CREE
    if kind == "activity":
        if statistics.firing is None:
            raise DataError(
                f"{'the statistics' if given else source}: no firing counts, which equal activity needs; run "
                "`monet stats --firing true`"
            )
        sums_CREE = statistics.firing.fired_CREE.double()
    tokens_C = statistics.tokens_C
    found = {label: sums_CREE[index] / tokens_C[index] for index, label in enumerate(statistics.labels)}
    return {"": sums_CREE.sum(0) / tokens_C.sum(), **found}
