"""Read the routers' outputs into the tables of every routing group."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.statistics.pairs import ActiveExperts, ExpertLister, active_keys
from monet.eval.attribution.statistics.passes import RouterReader
from monet.eval.core.inputs import Batch
from monet.eval.index.tables import Places, Sizes, Tables
from monet.eval.index.units import Units


class IndexReader(RouterReader):
    """Adds experts and halves to the tables. Each batch must hold whole windows, and no window twice.

    Args:
        units: the model's units.
        sizes: sizes of the tables of a group.
        device: device of the model.
        exclusion: tokens that do not count.

    Attributes:
        tables: the tables of each routing group.
    """

    def __init__(self, units: Units, sizes: Sizes, device: torch.device, exclusion: Exclusion) -> None:
        super().__init__(device, exclusion)
        self.units = units
        self.seed = sizes.seed
        self.tables = [Tables(group, sizes, self.device) for group in range(units.groups)]
        self._lister = ExpertLister(units.keys, self.device)
        self._places: Places | None = None

    def start(self, batch: Batch) -> Tensor:
        """Set the windows of the next forward pass."""
        length_B = super().start(batch)
        tokens = self.tokens
        assert tokens is not None
        chosen_BT = torch.ones_like(batch.input_ids_BT, dtype=torch.bool)
        if tokens.chosen_BT is not None:
            chosen_BT = tokens.chosen_BT.cpu()
        window_X, _, position_X = tokens.place_X3.unbind(1)
        id_X = batch.input_ids_BT[chosen_BT].to(self.device)
        row_X = chosen_BT.nonzero()[:, 0].to(self.device)
        self._places = Places.of(tokens.label_X, id_X, window_X.contiguous(), row_X, position_X.contiguous(), self.seed)
        return length_B

    def read(self, group: int, g1_XHE: Tensor, g2_XHE: Tensor) -> None:
        """Add the probabilities of a group."""
        assert self._places is not None
        if bool(self.is_finite) and len(g1_XHE):
            self.tables[group].add(self._lists(g1_XHE, g2_XHE), self._places)

    def _lists(self, g1_XHE: Tensor, g2_XHE: Tensor) -> Iterator[ActiveExperts]:
        yield from self._lister.lists(g1_XHE, g2_XHE)
        yield active_keys(g1_XHE, self.units.pairs)
        yield active_keys(g2_XHE, self.units.pairs + self.units.keys)
