"""Each expert's mass or activity, by domain, from statistics of `monet stats`."""

from __future__ import annotations

from torch import Tensor

from monet.errors import DataError
from monet.eval.attribution.statistics.result import ExpertStatistics
from monet.masks.controls import ControlKind


def weights_of(statistics: ExpertStatistics, kind: ControlKind, name: str = "the statistics") -> dict[str, Tensor]:
    """(R, E, E) float64 weights by label for `monet.masks.controls.control_keep`; the key "" holds those over all text.

    Args:
        statistics: what `monet stats` collected.
        kind: mass takes mean routing weights; activity takes the share of tokens at which an expert fires.
        name: how messages call the statistics.

    Raises:
        DataError: a label has no token, or activity is requested without firing counts.
    """
    statistics.means()  # refuses a label without a token
    sums_CREE = statistics.sums_CREE
    if kind == "activity":
        if statistics.firing is None:
            raise DataError(f"{name}: no firing counts, which equal activity needs; run `monet stats --firing true`")
        sums_CREE = statistics.firing.fired_CREE.double()
    tokens_C = statistics.tokens_C
    found = {label: sums_CREE[index] / tokens_C[index] for index, label in enumerate(statistics.labels)}
    return {"": sums_CREE.sum(0) / tokens_C.sum(), **found}
