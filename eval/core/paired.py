"""Means of several conditions over the same units, if a condition may lack a number for some units.

The mean of a condition is over the units for which it has a number. Its change from the first condition is over the
units that both have. A resample draws the same units for all conditions that have the same units.

Dims: C conditions, M quantities of a unit, U units (prompts, problems), Q resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monet.eval.core.bootstrap import Bootstrap, resample_means
from monet.eval.core.estimate import Draws


@dataclass(frozen=True)
class Paired:
    """Means of the conditions. A condition without any unit is missing.

    Args:
        own: the M means, by condition.
        change: the M means minus those of condition 0, on the units that both have, by condition.
    """

    own: dict[int, list[Draws]] = field(default_factory=dict)
    change: dict[int, list[Draws]] = field(default_factory=dict)


def paired(metrics_CMU: NDArray[np.float64], bootstrap: Bootstrap, seed: Sequence[int]) -> Paired:
    """Means and changes, with their resamples. The draws of a mean over a single unit are NaN: it has no interval.

    Args:
        metrics_CMU: float64; all M numbers of a unit are NaN if the condition lacks it.
        bootstrap: the number of resamples.
        seed: seed for the draws; equal seeds draw the same units.
    """
    valid_CU = ~np.isnan(metrics_CMU[:, 0])
    # Conditions that have the same units are drawn together. If nothing is missing, this is one call.
    jobs: dict[bytes, set[int]] = {}
    for c, valid_U in enumerate(valid_CU):
        jobs.setdefault(valid_U.tobytes(), set()).add(c)
        jobs.setdefault((valid_U & valid_CU[0]).tobytes(), set()).update((0, c))
    found = Paired()
    for content, members in jobs.items():
        taken_U = np.frombuffer(content, dtype=bool)
        if not taken_U.any():
            continue
        chosen = sorted(members)
        drawn = dict(zip(chosen, _drawn(metrics_CMU[chosen][:, :, taken_U], bootstrap, seed), strict=True))
        for c, means in drawn.items():
            if content == valid_CU[c].tobytes():
                found.own[c] = means
            if 0 in drawn and content == (valid_CU[c] & valid_CU[0]).tobytes():
                found.change[c] = [after - before for after, before in zip(means, drawn[0], strict=True)]
    return found


def _drawn(metrics_XMU: NDArray[np.float64], bootstrap: Bootstrap, seed: Sequence[int]) -> list[list[Draws]]:
    """Means of some conditions over the units that all of them have."""
    rows, quantities, units = metrics_XMU.shape
    values_YU = metrics_XMU.reshape(rows * quantities, units)
    if units == 1:
        unknown_Q = np.full(bootstrap.resamples, np.nan)
        means = [Draws(float(value), unknown_Q) for value in values_YU[:, 0]]
    else:
        drawn = resample_means(values_YU, np.ones(units, np.int64), bootstrap.resamples, seed)
        means = [Draws(*column) for column in zip(drawn.mean_C.tolist(), drawn.draws_QC.T, strict=True)]
    return [means[row * quantities : (row + 1) * quantities] for row in range(rows)]
