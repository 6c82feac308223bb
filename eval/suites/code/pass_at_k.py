"""The unbiased estimator of pass@k, the probability that at least one of k samples passes.

The estimate uses n samples of which c passed.
"""

from __future__ import annotations

import numpy as np

from monet.errors import DataError


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k), as a product without large numbers (Chen et al., arXiv 2107.03374, figure 3).

    Args:
        n: number of samples of a problem.
        c: number of samples that passed, 0 to n.
        k: number of samples drawn without replacement, 1 to n.

    Raises:
        DataError: a number is out of range; with fewer samples than k there is no unbiased estimate.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise DataError(
            f"pass@{k} from {c} passes in {n} samples: 0 <= passes <= samples and 1 <= k <= samples must hold"
        )
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
