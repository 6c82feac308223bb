"""Read an index: contexts, samples, counts, labels and windows of any unit, without loading the whole."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from monet.errors import CheckpointError
from monet.eval.attribution.statistics.result import ExpertStatistics
from monet.eval.index import info as names
from monet.eval.index.info import IndexInfo
from monet.eval.index.tables import BINS, INTERVALS, SUM_SCALE, Sizes, bin_edges
from monet.eval.index.text import WindowTexts
from monet.eval.index.tokens import TokenTexts
from monet.eval.index.units import Unit, Units

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetPreTrainedModel

_NONE = 2**32 - 1


@dataclass(frozen=True)
class Context:
    """A token at which a unit is active.

    Attributes:
        window: number of the window, see `Index.windows`.
        position: position of the token in the window.
        weight: the unit's weight there.
        interval: interval of the weight, 0 to 7, for a sample; None for one of the strongest contexts.
    """

    window: int
    position: int
    weight: float
    interval: int | None = None


class Index:
    """An index folder, opened for reading; arrays are read piece by piece.

    Args:
        folder: folder of `monet index`.
        model: if given, an index of another model is refused.

    Attributes:
        folder: the folder.
        info: the content of index.json.
        units: the model's units.
        windows: the windows of the text, by number.
        texts: texts of token ids.

    Raises:
        CheckpointError: the folder is no index, is damaged, or belongs to another model.
    """

    def __init__(self, folder: str | os.PathLike[str], model: MonetPreTrainedModel | None = None) -> None:
        self.folder = Path(folder)
        self.info = IndexInfo.load(folder)
        if model is not None and (now := model.fingerprint()) != self.info.model.fingerprint:
            raise CheckpointError(
                f"{folder} is an index of model {self.info.model.fingerprint}, not of this one ({now}); make one with "
                "`monet index`"
            )
        self.units: Units = self.info.units
        self.windows = WindowTexts(self.folder / names.WINDOWS)
        self.texts = TokenTexts.load(self.folder / names.TOKENIZER)

    def contexts(self, unit: Unit) -> list[Context]:
        """The strongest contexts, strongest first, at most one from each window; fewer if the unit fires in fewer."""
        weight_Q, window_Q, position_Q = (
            self.array(names.TOP, f"{name}_RUQ", unit) for name in ("weight", "window", "position")
        )
        return [
            Context(int(window), int(position), float(weight))
            for weight, window, position in zip(weight_Q, window_Q, position_Q, strict=True)
            if window != _NONE
        ]

    def samples(self, unit: Unit) -> list[Context]:
        """Random contexts of each interval of weight, weakest interval first."""
        weight_AZ, window_AZ, position_AZ = (
            self.array(names.SAMPLES, f"{name}_RUAZ", unit) for name in ("weight", "window", "position")
        )
        return [
            Context(int(window_AZ[at]), int(position_AZ[at]), float(weight_AZ[at]), at[0])
            for at in np.ndindex(*window_AZ.shape)
            if window_AZ[at] != _NONE
        ]

    def histogram(self, unit: Unit) -> NDArray[np.uint32]:
        """Firings in each of 16 bins, (Y,) uint32; `edges` has their edges. Tokens without a firing are not counted."""
        return self.array(names.COUNTS, "histogram_RUY", unit)

    @functools.cached_property
    def edges(self) -> list[float]:
        """The 17 edges of the bins of weight; each interval of samples has two bins."""
        info = self.info
        return bin_edges(Sizes(0, 1, 1, info.model.heads, 0, 0).highest)

    @property
    def interval_edges(self) -> list[float]:
        """The 9 edges of the intervals of weight."""
        return self.edges[:: BINS // INTERVALS]

    def label_means(self, unit: Unit) -> dict[str, float]:
        """Mean weight per token, by label."""
        with safe_open(self.folder / names.COUNTS, "numpy") as file:
            sum_C = file.get_slice("sum_RCU")[unit.group, :, unit.number]
        tokens_C = np.maximum(np.array(self.info.tokens), 1)
        return dict(zip(self.info.data.labels, (sum_C / SUM_SCALE / tokens_C).tolist(), strict=True))

    def means(self, group: int) -> NDArray[np.float64]:
        """Mean weights per token of all units of a group, (C, U) float64."""
        with safe_open(self.folder / names.COUNTS, "numpy") as file:
            sum_CU = file.get_slice("sum_RCU")[group]
        return sum_CU / SUM_SCALE / np.maximum(np.array(self.info.tokens), 1)[:, None]

    def context_windows(self, group: int) -> NDArray[np.uint32]:
        """Windows of the contexts of all units of a group, (U, Q) uint32; 2^32 - 1 in empty places."""
        with safe_open(self.folder / names.TOP, "numpy") as file:
            return file.get_slice("window_RUQ")[group]

    def row(self, unit: Unit) -> dict[str, Any]:
        """The unit's row of the table of experts."""
        return self._group_table(unit.group).slice(unit.number, 1).to_pylist()[0]

    def table(self, columns: list[str] | None = None, filters: Any = None) -> pa.Table:
        """The table of experts, or some of its columns and rows.

        Args:
            columns: names of columns; None takes all. `experts.SCHEMA` has the names.
            filters: a condition as in `pyarrow.parquet.read_table`.
        """
        return pq.read_table(self.folder / names.EXPERTS, columns=columns, filters=filters)

    def array(self, file: str, name: str, unit: Unit) -> NDArray[Any]:
        """One unit's part of an array of all units."""
        with safe_open(self.folder / file, "numpy") as opened:
            return opened.get_slice(name)[unit.group, unit.number]

    def statistics(self) -> ExpertStatistics:
        """The sums by label as statistics of `monet stats`, for its rules and masks. Takes (C, R, E, E) float64.

        The number of documents is not in an index; windows take its place.
        """
        info, units = self.info, self.units
        with safe_open(self.folder / names.COUNTS, "pt") as file:
            sum_RCN = file.get_slice("sum_RCU")[:, :, : units.pairs]
        shape = (units.groups, len(info.data.labels), units.keys, units.keys)
        sums_CREE = (sum_RCN.double() / SUM_SCALE).view(shape).transpose(0, 1).contiguous()
        windows_C = torch.tensor(info.windows)
        return ExpertStatistics(
            list(info.data.labels), sums_CREE, torch.tensor(info.tokens), windows_C, windows_C.clone(),
            info.model.fingerprint, self.provenance,
        )  # fmt: skip

    @property
    def provenance(self) -> dict[str, Any]:
        """Which text was read and how, as statistics and masks record it, JSON-able."""
        info = self.info
        excluded = {"ids": info.settings.exclude_ids, "first": info.settings.exclude_first, "tokens": info.excluded}
        part = {"data_fingerprint": info.data.fingerprint, **info.data.description, **info.text, "excluded": excluded}
        part |= {"stored_mask": info.model.stored_mask}
        return {"versions": info.versions, "made_by": "monet index", "parts": [part]}

    @functools.lru_cache(maxsize=4)  # noqa: B019 - an index lives as long as the program, or its cache with it
    def _group_table(self, group: int) -> pa.Table:
        return pq.read_table(self.folder / names.EXPERTS, filters=[("group", "==", group)])
