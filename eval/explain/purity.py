"""How much the contexts of a unit have in common: its commonest token, its commonest label, the entropy of labels.

Dims: U units, K contexts of a unit, C labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from monet.eval.explain.strongest import ContextTable

# A unit has one label if this share of its contexts has it.
ONE_LABEL = 0.9
MEASURES = ("token_purity", "one_label", "label_entropy")


def purities(table: ContextTable, labels: int) -> NDArray[np.float64]:
    """The measures of each unit, (3, U) float64, in the order of `MEASURES`; NaN for a unit without a context.

    token_purity is the share of the most frequent token. one_label is 1 if a share of at least `ONE_LABEL` of the
    contexts has one label, and 0 if not. label_entropy is the entropy of the shares of the labels, in bits.
    """
    total_U = table.weight_UK.sum(1)
    safe_U = np.where(total_U > 0, total_U, np.nan)
    token_U = most_frequent(table.token_UK, table.weight_UK) / safe_U
    sum_UC = np.stack([(table.weight_UK * (table.label_UK == label)).sum(1) for label in range(labels)], axis=1)
    share_UC = sum_UC / safe_U[:, None]
    entropy_U = -(share_UC * np.log2(np.where(share_UC > 0, share_UC, 1.0))).sum(1)
    one_U = np.where(total_U > 0, (share_UC.max(1) >= ONE_LABEL).astype(np.float64), np.nan)
    return np.stack([token_U, one_U, np.abs(entropy_U)])


def most_frequent(value_UK: NDArray[np.int64], weight_UK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest weight that one value has in each row, (U,) float64."""
    found_U = np.zeros(len(value_UK))
    for column in range(value_UK.shape[1]):
        same_UK = value_UK == value_UK[:, column : column + 1]
        found_U = np.maximum(found_U, (same_UK * weight_UK).sum(1))
    return found_U


def usage(mean_U: NDArray[np.float64]) -> tuple[float, float]:
    """Share of units that are ever active, and how evenly they share the work.

    The second number is exp(entropy of the shares of the total) divided by the number of units: 1 if all are equal,
    1 / U if one unit does all.

    Args:
        mean_U: mean weight or activity of every unit, at least 0.
    """
    total = mean_U.sum()
    if not total > 0:
        return 0.0, 0.0
    share_U = mean_U[mean_U > 0] / total
    return float((mean_U > 0).mean()), float(np.exp(-(share_U * np.log(share_U)).sum()) / len(mean_U))


def scattered(
    count_U: NDArray[np.int64], frequency_V: NDArray[np.int64], tokens_C: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """The control of exact counts, (3, U) float64: units that fire as often, at random tokens of the text.

    Args:
        count_U: number of firings of each unit.
        frequency_V: how often each token occurs in the text.
        tokens_C: counted tokens of each label.
        seed: seed of the places.
    """
    generator = np.random.default_rng([seed, 6])
    found = np.zeros((len(MEASURES), len(count_U)))
    for unit, count in enumerate(count_U.tolist()):
        token = generator.multinomial(count, frequency_V / frequency_V.sum()).max() / max(count, 1)
        mean_C = generator.multinomial(count, tokens_C / tokens_C.sum()) / np.maximum(tokens_C, 1)
        share_C = mean_C / max(mean_C.sum(), 1e-300)
        entropy = -(share_C * np.log2(np.where(share_C > 0, share_C, 1.0))).sum()
        found[:, unit] = token, share_C.max() >= ONE_LABEL, entropy
    return found
