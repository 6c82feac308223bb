"""Monosemanticity of whole models in numbers: pairs, halves and neurons with an equal number of units.

Every number has a control. For the strongest contexts, tokens and labels are dealt to the units at random. For all
firings, it is the number of units that fire as often, at random tokens of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.document import Report, Table
from monet.eval.core.estimate import Estimate
from monet.eval.core.paired import paired
from monet.eval.core.results import Result
from monet.eval.explain.neurons import neurons
from monet.eval.explain.overlap import best_overlap, exchanged
from monet.eval.explain.purity import MEASURES, ONE_LABEL, purities, scattered, usage
from monet.eval.explain.records import SCORES, Score, read_lines
from monet.eval.explain.result import words
from monet.eval.explain.strongest import ContextTable, WindowTable, strongest
from monet.eval.index.index import Index
from monet.eval.index.units import Unit

KindName = Literal["pair", "half", "neuron"]
Of = Literal["strongest", "all"]


@dataclass(frozen=True)
class Measure:
    """One number of one kind of unit.

    Attributes:
        name: token_purity, one_label or label_entropy (bits), see `purities`; detection; or overlap.
        of: strongest contexts, all firings, or what else was measured.
        value: mean over the drawn units.
        permuted: the same of the control.
        units: number of units in the mean.
    """

    name: str
    of: str
    value: Estimate
    permuted: Estimate | None
    units: int


@dataclass(frozen=True)
class KindNumbers:
    """The numbers of one kind of unit of one model.

    Attributes:
        model: name of the model.
        kind: pair, half or neuron.
        units: units of this kind in the model.
        active: share of them that is ever active.
        evenness: exp(entropy of their shares of the total weight) divided by their number.
        drawn: units in the measures, drawn at random among those that are active `min_count` times.
        measures: the numbers.
    """

    model: str
    kind: KindName
    units: int
    active: float
    evenness: float
    drawn: int
    measures: list[Measure] = field(default_factory=list)


@dataclass(frozen=True)
class NumbersResult(Result):
    """The numbers of one or several models on one text.

    Attributes:
        kinds: one entry for each model and kind of unit.
        tokens: counted tokens of the text.
        labels: its labels.
        provenance: indexes and settings.
    """

    FORMAT: ClassVar[str] = "monet-numbers/1"
    COMMAND: ClassVar[str] = "monet index numbers"

    kinds: list[KindNumbers]
    tokens: int
    labels: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What was measured."""
        drawn = self.kinds[0].drawn
        return f"{drawn:,} units of each kind on {self.tokens:,} tokens of {len(self.labels)} labels"

    def report(self) -> Report:
        """The numbers as a table: value, interval, and the control after "v"."""
        columns = list(dict.fromkeys((one.name, one.of) for kind in self.kinds for one in kind.measures))
        rows = []
        for kind in self.kinds:
            found = {(one.name, one.of): one for one in kind.measures}
            cells = [_cell(found.get(column)) for column in columns]
            rows.append([f"{kind.model} {kind.kind}", f"{kind.active:.1%}", f"{kind.evenness:.2f}", *cells])
        header = ["units", "active", "evenness", *(f"{name} ({of})".replace("_", " ") for name, of in columns)]
        note = "value [95 % interval over units] v permuted control"
        table = Table("monosemanticity", header, rows, note)
        return Report("Monosemanticity", f"{self.sentence}; cells: {note}", [table], self.provenance)


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return ""
    control = "" if measure.permuted is None else f" v {measure.permuted.value:.3f}"
    return words(measure.value) + control


def drawn_units(index: Index, kind: KindName, count: int, min_count: int, seed: int) -> list[Unit]:
    """Units of a kind that are active at least `min_count` times, at random; all if there are fewer.

    Args:
        index: the index.
        kind: pair, or half for both halves.
        count: units to draw.
        min_count: firings that a unit needs.
        seed: seed of the draw.
    """
    kinds = ["pair"] if kind == "pair" else ["first", "second"]
    table = index.table(["group", "unit"], [("kind", "in", kinds), ("count", ">=", min_count)])
    rows = sorted(zip(table.column("group").to_pylist(), table.column("unit").to_pylist(), strict=True))
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [index.units.unit(*rows[n]) for n in sorted(order.tolist())]


def of_index(
    index: Index, windows: WindowTable, kind: KindName, units: Sequence[Unit], bootstrap: Bootstrap
) -> KindNumbers:
    """The numbers of pairs or halves of an index, for the drawn units."""
    kinds = ["pair"] if kind == "pair" else ["first", "second"]
    mean_N = index.table(["mean"], [("kind", "in", kinds)]).column("mean").to_numpy().astype(np.float64)
    measures = measures_of(strongest(index, windows, units), len(index.info.data.labels), "strongest", bootstrap)
    measures += of_all_firings(index, windows, units, bootstrap)
    measures += _detections(index, kind, bootstrap)
    name = Path(index.info.model.name).name or index.folder.name
    return KindNumbers(name, kind, len(mean_N), *usage(mean_N), len(units), measures)


def of_neurons(
    model: Any, index: Index, windows: WindowTable, count: int, bootstrap: Bootstrap, progress: bool = True
) -> KindNumbers:
    """The numbers of a dense model's neurons on the text of an index."""
    found = neurons(model, index, windows, count, bootstrap.seed, progress)
    measures = measures_of(found.contexts, len(index.info.data.labels), "strongest", bootstrap)
    name = Path(str(model.name_or_path)).name
    return KindNumbers(name, "neuron", len(found.mean_N), *usage(found.mean_N), len(found.contexts.window_UK), measures)


def measures_of(table: ContextTable, labels: int, of: Of, bootstrap: Bootstrap) -> list[Measure]:
    """Means over the units with intervals, and those of the control."""
    own_MU, control_MU = purities(table, labels), purities(table.shuffled(bootstrap.seed), labels)
    return [
        measure(name, of, own_U, control_U, bootstrap)
        for name, own_U, control_U in zip(MEASURES, own_MU, control_MU, strict=True)
    ]


def of_all_firings(index: Index, windows: WindowTable, units: Sequence[Unit], bootstrap: Bootstrap) -> list[Measure]:
    """The same measures from the counts and sums of all firings in the index; see its documentation of columns.

    token_purity is `token_share`, one_label says whether `label_share` is at least `ONE_LABEL`, and label_entropy is
    the entropy of the mean weights by label. An index that estimates firing tokens has no token_purity: a
    large share of a few samples is the same token by chance.
    """
    rows = [index.row(unit) for unit in units]
    count_U = np.array([row["count"] for row in rows], np.int64)
    own_MU = np.array([[row[name] for row in rows] for name in ("token_share", "label_share", "label_entropy")], float)
    own_MU[1] = own_MU[1] >= ONE_LABEL
    tokens_C = np.array(index.info.tokens)
    control_MU = scattered(count_U, windows.frequencies(index), tokens_C, bootstrap.seed)
    return [
        measure(name, "all", own_U, control_U, bootstrap)
        for name, own_U, control_U in zip(MEASURES, own_MU, control_MU, strict=True)
        if name != "token_purity" or index.info.settings.tokens == "exact"
    ]


def measure(
    name: str, of: str, own_U: NDArray[np.float64], control_U: NDArray[np.float64] | None, bootstrap: Bootstrap
) -> Measure:
    """The mean of a number over units and that of its control; NaN is a unit without the number."""
    rows = [own_U, *([] if control_U is None else [control_U])]
    found = paired(np.stack(rows)[:, None, :], bootstrap, [bootstrap.seed, 5])
    control = found.own[1][0].estimate(bootstrap) if 1 in found.own else None
    return Measure(name, of, found.own[0][0].estimate(bootstrap), control, int((~np.isnan(own_U)).sum()))


def overlap(
    one: Index, other: Index, windows: WindowTable, kind: KindName, units: Sequence[Unit], min_count: int,
    bootstrap: Bootstrap,
) -> Measure:  # fmt: skip
    """Mean over the units of the largest similarity to a unit of the other index, which must be of the same text."""
    every = drawn_units(other, kind, other.units.groups * other.units.per_group, min_count, bootstrap.seed)
    window_UK, window_XK = _windows(strongest(one, windows, units)), _windows(strongest(other, windows, every))
    control_XK = exchanged(window_XK, windows, bootstrap.seed)
    name = Path(other.info.model.name).name or other.folder.name
    own_U, control_U = best_overlap(window_UK, window_XK), best_overlap(window_UK, control_XK)
    return measure("overlap", f"best match in {name}", own_U, control_U, bootstrap)


def _windows(table: ContextTable) -> NDArray[np.int64]:
    return np.where(table.weight_UK > 0, table.window_UK, -1)


def _detections(index: Index, kind: KindName, bootstrap: Bootstrap) -> list[Measure]:
    """The detection scores that exist for units of this kind, one number for each file."""
    found = []
    for path in sorted((index.folder / SCORES).glob("*.jsonl")):
        lines = [line for line in read_lines(path, Score) if line.scorer == "detection" and line.score is not None]
        own = [line for line in lines if (line.i is not None and line.j is not None) == (kind == "pair")]
        if own:
            value_U, control_U = (
                np.array([np.nan if value is None else value for value in values])
                for values in ([line.score for line in own], [line.control_permuted for line in own])
            )
            found.append(measure("detection", path.stem, value_U, control_U, bootstrap))
    return found
