"""Are the experts of different domains disjoint? Under a rule by which several domains can share an expert.

Each domain takes the experts whose firing has the most mutual information with it, however much they have with other
domains. The same is done under permuted labels. C labels, otherwise dims as in docs/architecture.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monet.eval.attribution.rules import mutual_information
from monet.eval.attribution.stats import ExpertStatistics
from studies.knowledge.results import Overlap


def chosen(statistics: ExpertStatistics, share: float) -> Tensor:
    """The domains' strongest experts, (C, N over all groups) bool; experts without information are not chosen.

    Args:
        statistics: with firing counts.
        share: how many for each domain, as a share of all experts.
    """
    bits_CN = mutual_information(statistics).flatten(1)
    strongest = bits_CN.topk(max(1, int(share * bits_CN.shape[1])), dim=1)
    chosen_CN = torch.zeros_like(bits_CN, dtype=torch.bool)
    return chosen_CN.scatter_(1, strongest.indices, strongest.values > 0)


def jaccard(chosen_CN: Tensor) -> Tensor:
    """Shared experts of two domains over the experts of either, (C, C) float64; 0 if neither has any."""
    sets_CN = chosen_CN.double()
    both_CC = sets_CN @ sets_CN.T
    sizes_C = sets_CN.sum(1)
    return both_CC / (sizes_C[:, None] + sizes_C - both_CC).clamp(min=1)


def overlap(statistics: ExpertStatistics, share: float) -> Overlap:
    """The overlap of every two domains, with the means under each permutation of the labels."""
    labels = list(statistics.labels)
    pairs_CC = ~torch.eye(len(labels), dtype=torch.bool)
    found_CC = jaccard(chosen(statistics, share))
    permuted = [float(jaccard(chosen(one, share))[pairs_CC].mean()) for one in statistics.permuted]
    return Overlap(share, labels, found_CC.tolist(), float(found_CC[pairs_CC].mean()), permuted)
