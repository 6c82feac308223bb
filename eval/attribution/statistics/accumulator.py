"""Add up the outputs of the routers, batch by batch, in float64, under the true labels and under permuted labels.

Usually everything is computed from lists of each token's active experts. If only the sums of each label are wanted, one
product `G1^T G2` for each label, with token and head as its inner dimension, may be faster. The first batch decides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monet.eval.attribution.statistics import limits
from monet.eval.attribution.statistics.collectors import Scores, Tokens, Wanted, check_scored, collectors_of
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.statistics.pairs import ActiveExperts, ExpertLister, num_pairs
from monet.eval.attribution.statistics.passes import RouterReader
from monet.eval.attribution.statistics.shuffle import Shuffle
from monet.eval.core.inputs import Batch


class Sums:
    """Sums of each label, and the results of the collectors, under one labelling of the tokens."""

    def __init__(self, size_CREE: tuple[int, int, int, int], device: torch.device, wanted: Wanted) -> None:
        self.sums_CREE = torch.zeros(size_CREE, dtype=torch.float64, device=device)
        self.collectors = collectors_of(wanted, self.sums_CREE)
        self.tokens: Tokens | None = None

    def start(self, tokens: Tokens) -> None:
        """Set the tokens of the next forward pass."""
        if self.tokens is None and tokens.score_X is not None:
            self.collectors["scores"] = Scores(self.sums_CREE)
        self.tokens = tokens
        if isinstance(scores := self.collectors.get("scores"), Scores):
            scores.start(tokens)

    def add(self, group: int, active: ActiveExperts) -> None:
        """Add the active experts of one group."""
        assert self.tokens is not None, "call start before the batch's forward pass"
        _, R, E, _ = self.sums_CREE.shape
        begin_X = (self.tokens.label_X * R + group) * E**2
        place_P = begin_X.index_select(0, active.token_P).add_(active.expert_P)
        self.sums_CREE.view(-1).scatter_add_(0, place_P, active.weight_P)
        for collector in self.collectors.values():
            collector.add(group, active, place_P, self.tokens)

    def extras(self) -> dict[str, Any]:
        """Collected quantities other than the sums, by name."""
        return {name: collector.result() for name, collector in self.collectors.items()}


class Accumulator(RouterReader):
    """Add up the outputs of the routers while a batch is set.

    Args:
        num_labels: C.
        num_groups: R.
        num_keys: E.
        device: device of the model.
        wanted: what to collect.
        exclusion: tokens that are not counted.
        shuffle: permuted labels under which sums, firing and score moments are also collected; None for none.

    Attributes:
        own: statistics under the true labels.
        permuted: the same statistics under each permutation.
    """

    def __init__(
        self,
        num_labels: int,
        num_groups: int,
        num_keys: int,
        device: torch.device,
        wanted: Wanted,
        exclusion: Exclusion = Exclusion(),  # noqa: B008 - frozen
        shuffle: Shuffle | None = None,
    ) -> None:
        super().__init__(device, exclusion)
        self.shuffle = shuffle
        size_CREE = (num_labels, num_groups, num_keys, num_keys)
        self.own = Sums(size_CREE, self.device, wanted)
        read_by_rules = Wanted(firing="firing" in self.own.collectors)
        self.permuted = [
            Sums(size_CREE, self.device, read_by_rules) for _ in range(shuffle.count if shuffle is not None else 0)
        ]
        self._lister: ExpertLister | None = None
        self._lists: bool | None = None
        self._alike: list[tuple[list[int], Tensor | None]] = []

    def start(self, batch: Batch) -> Tensor:
        """Set the tokens of the next forward pass.

        Returns:
            int64 (B,), the number of counted tokens of each sequence.

        Raises:
            DataError: some batches have scores and others do not.
        """
        if self.own.tokens is not None:
            check_scored(batch, "scores" in self.own.collectors)
        length_B = super().start(batch)
        tokens = self.tokens
        assert tokens is not None
        self.own.start(tokens)
        for one, shuffled in zip(self.permuted, self.shuffle.batch(batch, tokens) if self.shuffle else [], strict=True):
            one.start(shuffled)
        if not self._lists:
            self._alike = self._labelled_alike()
        return length_B

    def read(self, group: int, g1_XHE: Tensor, g2_XHE: Tensor) -> None:
        """Add the probabilities of a group."""
        if self._lists is None:
            self._lists = bool(self.own.collectors) or self._listing_is_cheaper(g1_XHE, g2_XHE)
        if not self._lists:
            self._add_products(group, g1_XHE, g2_XHE)
        elif bool(self.is_finite):
            self._add_lists(group, g1_XHE, g2_XHE)

    def _listing_is_cheaper(self, g1_XHE: Tensor, g2_XHE: Tensor) -> bool:
        return num_pairs(g1_XHE, g2_XHE) * limits.PRODUCTS_A_PAIR < g1_XHE.numel() * g1_XHE.shape[-1]

    def _add_lists(self, group: int, g1_XHE: Tensor, g2_XHE: Tensor) -> None:
        if self._lister is None:
            self._lister = ExpertLister(g1_XHE.shape[-1], self.device)
        for active in self._lister.lists(g1_XHE, g2_XHE):
            for one in (self.own, *self.permuted):
                one.add(group, active)

    def _labelled_alike(self) -> list[tuple[list[int], Tensor | None]]:
        """The batch's tokens by label under each labelling: the labels, and which tokens (None for all)."""
        labels_AX = torch.stack([one.tokens.label_X for one in (self.own, *self.permuted) if one.tokens is not None])
        found_AK, which_X = labels_AX.unique(dim=1, return_inverse=True)
        several = found_AK.shape[1] > 1
        return [(labels_A, which_X == k if several else None) for k, labels_A in enumerate(found_AK.T.tolist())]

    def _add_products(self, group: int, g1_XHE: Tensor, g2_XHE: Tensor) -> None:
        for labels_A, rows_X in self._alike:
            probs = (g1_XHE, g2_XHE) if rows_X is None else (g1_XHE[rows_X], g2_XHE[rows_X])
            g1_ZE, g2_ZE = (g_XHE.flatten(0, 1) for g_XHE in probs)
            sums_EE = (g1_ZE.T @ g2_ZE).double()
            for one, label in zip((self.own, *self.permuted), labels_A, strict=True):
                one.sums_CREE[label, group] += sums_EE
