"""Filter and sort all experts of an index, and count them for the overview.

An answer takes a few passes over columns of numbers, so a million experts take some ten milliseconds. Dims: N rows of
the table, X chosen rows, V token ids.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.index.index import Index
from monet.eval.view.columns import Columns
from monet.eval.view.explanations import Explanations
from monet.eval.view.query import Query
from monet.eval.view.visible import visible

pc: Any = pyarrow.compute  # it makes its functions when it is imported

Bools = NDArray[np.bool_]


class Browser:
    """Answers queries.

    Args:
        index: the index.
        columns: its table.
        explanations: explanations by unit.
        removed: for a mask's name, the rows that it removes, (N,) bool.

    Attributes:
        labels: the labels of the index, as the page shows them.
        scores: best score of each row by scorer, (N,) float32.
    """

    def __init__(
        self, index: Index, columns: Columns, explanations: Explanations, removed: Callable[[str], Bools]
    ) -> None:
        self.columns, self.explanations, self._removed = columns, explanations, removed
        self.scores = explanations.columns(len(columns))
        self.labels = [visible(label) for label in index.info.data.labels]
        self.groups = index.info.model.groups
        used_V = np.unique(columns.token_NF)
        self._ids_V = used_V[used_V >= 0]
        self._vocabulary = int(self._ids_V[-1]) + 1 if len(self._ids_V) else 0
        self.token_texts = [visible(index.texts.text(int(token))) for token in self._ids_V]
        self._texts_V = pa.array(self.token_texts, pa.string())
        self._chosen = functools.lru_cache(maxsize=4)(self._chosen_now)

    def rows(self, query: Query) -> NDArray[np.int64]:
        """All rows that a query chooses, (X,) int64, in the order of the index.

        Raises:
            ConfigError: the query names an unknown label, group or mask.
        """
        return np.flatnonzero(self._chosen(_key(query)))

    def page(self, query: Query, offset: int, count: int) -> tuple[int, NDArray[np.int64]]:
        """The number of chosen rows, and some of them in order; errors as for `rows`.

        Rows without a value come last. Of equal values, the lower row comes first.

        Args:
            query: the query.
            offset: rows to leave out.
            count: largest number of rows to return.
        """
        row_X = self.rows(query)
        if query.sort == "unit":
            ordered = row_X if not query.descending else row_X[::-1]
            return len(row_X), ordered[offset : offset + count]
        value_X = self._match(query, row_X) if query.sort == "match" else self._column(query.sort)[row_X]
        best = first_places(value_X, offset + count, query.descending)
        return len(row_X), row_X[best[offset:]]

    def forget(self) -> None:
        """Forget answers that are kept; call it after a mask changed."""
        self._chosen.cache_clear()

    def token_hits(self, query: Query) -> Bools:
        """Which token ids the query's token matches, (V,) bool."""
        wanted = query.token.strip() if query.whole else query.token
        hit_V = np.zeros(self._vocabulary + 1, bool)  # the last place is for empty places, whose id is -1
        if wanted:
            texts = pc.utf8_trim_whitespace(self._texts_V) if query.whole else self._texts_V
            if query.whole:
                found = pc.equal(pc.utf8_lower(texts), wanted.lower())
            else:
                found = pc.match_substring(texts, wanted, ignore_case=True)
            hit_V[self._ids_V[found.to_numpy(zero_copy_only=False).astype(bool)]] = True
        return hit_V

    def _column(self, name: str) -> NDArray[Any]:
        found = {**self.columns.number, **self.scores}
        if name not in found:
            raise ConfigError(f"column {name}: the index has no such scores; it has {', '.join(found)}")
        return found[name]

    def _match(self, query: Query, row_X: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of the rows' firings that are at matching tokens, (X,) float64."""
        hit_XF = self.token_hits(query)[self.columns.token_NF[row_X]]
        firings_X = (self.columns.firings_NF[row_X] * hit_XF).sum(1)
        return firings_X / np.maximum(self.columns.number["count"][row_X], 1)

    def _chosen_now(self, key: tuple[Any, ...]) -> Bools:
        query = Query(**dict(key[:-2]), low=dict(key[-2]), high=dict(key[-1]))
        columns = self.columns
        chosen_N = np.ones(len(columns), bool)
        if query.kind != "all":
            chosen_N &= (columns.kind_N == 0) == (query.kind == "pair")
        if query.group is not None:
            if not 0 <= query.group < self.groups:
                raise ConfigError(f"group {query.group}: the model has routing groups 0 to {self.groups - 1}")
            chosen_N &= columns.group_N == query.group
        if query.label:
            if query.label not in self.labels:
                raise ConfigError(f"label {query.label!r}: the index has {', '.join(self.labels)}")
            chosen_N &= columns.label_N == self.labels.index(query.label)
        for bounds, keeps in ((query.low, np.greater_equal), (query.high, np.less_equal)):
            for name, bound in bounds.items():
                chosen_N &= keeps(self._column(name), bound)
        if query.token:
            hit_V, any_N = self.token_hits(query), np.zeros(len(columns), bool)
            for token_N in columns.token_NF.T:  # quicker than a table of all hits
                any_N |= hit_V[token_N]
            chosen_N &= any_N
        if query.explanation:
            chosen_N &= self.explanations.containing(query.explanation, len(columns))
        if query.mask:
            chosen_N &= self._removed(query.mask)
        return chosen_N


def _key(query: Query) -> tuple[Any, ...]:
    """What decides which rows a query chooses, without their order."""
    names = ("kind", "group", "label", "token", "whole", "explanation", "mask")
    values = tuple((name, getattr(query, name)) for name in names)
    return (*values, tuple(sorted(query.low.items())), tuple(sorted(query.high.items())))


def first_places(value_X: NDArray[Any], count: int, descending: bool) -> NDArray[np.int64]:
    """Places of the first `count` values in order; NaN last, and of equal values the lower place first.

    Sorts only the values that can be among the first.

    Args:
        value_X: numbers.
        count: number of places to return.
        descending: largest first.
    """
    key_X = value_X.astype(np.float64)
    if descending:
        key_X = -key_X
    largest = np.finfo(np.float64).max
    key_X = np.clip(key_X, -largest, largest)  # so infinite ratios come before NaN
    key_X[np.isnan(key_X)] = np.inf
    if count < len(key_X):
        bound = np.partition(key_X, count - 1)[count - 1] if count > 0 else -np.inf
        below = np.flatnonzero(key_X < bound)
        equal = np.flatnonzero(key_X == bound)[: max(0, count - len(below))]
        place_X = np.sort(np.concatenate([below, equal]))
    else:
        place_X = np.arange(len(key_X))
    return place_X[np.argsort(key_X[place_X], kind="stable")][:count]


def counted(columns: Columns, labels: list[str]) -> Mapping[str, Any]:
    """What the overview shows: numbers and histograms of experts by routing group, JSON-able."""
    is_pair_N = columns.kind_N == 0
    alive_N = is_pair_N & (columns.number["count"] > 0)
    groups = []
    for group in range(columns.units.groups):
        begin = group * columns.units.per_group
        rows = slice(begin, begin + columns.units.pairs)
        alive = alive_N[rows]
        rate, share = columns.number["rate"][rows][alive], columns.number["label_share"][rows][alive]
        label = columns.label_N[rows][alive]
        groups.append(
            {
                "group": group,
                "experts": columns.units.pairs,
                "never_fire": int((~alive).sum()),
                "rate": _histogram(np.log10(rate), RATE_EDGES),
                "label_share": _histogram(share, SHARE_EDGES),
                "token_share": _histogram(columns.number["token_share"][rows][alive], SHARE_EDGES),
                "labels": np.bincount(label[label >= 0], minlength=len(labels)).tolist(),
                "specialists": np.bincount(label[(label >= 0) & (share >= SPECIALIST)], minlength=len(labels)).tolist(),
            }
        )
    rate, share = columns.number["rate"][alive_N], columns.number["label_share"][alive_N]
    density, _, _ = np.histogram2d(np.log10(rate), share, bins=(RATE_EDGES, SHARE_EDGES))
    return {
        "groups": groups,
        "rate_edges": RATE_EDGES,
        "share_edges": SHARE_EDGES,
        "density": density.astype(int).tolist(),
        "specialist": SPECIALIST,
        "labels": labels,
    }


# Powers of ten of the share of tokens at which an expert fires; shares of weights.
RATE_EDGES = [round(-7 + 0.25 * n, 2) for n in range(29)]
SHARE_EDGES = [round(0.05 * n, 2) for n in range(21)]
# An expert with this share of its mean weights in one label is called a specialist on the page.
SPECIALIST = 0.9


def _histogram(values: NDArray[Any], edges: list[float]) -> list[int]:
    return np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)[0].tolist()
