"""Everything that the page shows of an index, as JSON-able values; the server and the static page both use it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monet.errors import ConfigError
from monet.eval.index.index import Context, Index
from monet.eval.index.units import KINDS, Unit
from monet.eval.inspection.objects import By, Inspection
from monet.eval.view import limits
from monet.eval.view.browse import Browser, counted
from monet.eval.view.columns import NUMBERS, Columns
from monet.eval.view.explanations import Explanations
from monet.eval.view.masks import Masks
from monet.eval.view.query import Query

NEIGHBOURS: tuple[By, ...] = ("contexts", "labels", "key")


class Store:
    """An opened index with its table, masks and explanations.

    Args:
        index: the index.
        masks: folders of masks.
        out: folder for new masks.

    Attributes:
        index: the index.
        columns: its table of experts.
        masks: the known masks.
        browser: answers queries.

    Raises:
        CheckpointError: a mask belongs to another model.
        DataError: an explanation cannot be read.
    """

    def __init__(self, index: Index, masks: Iterable[Path] = (), out: Path = Path("masks")) -> None:
        self.index = index
        index.windows.keep(limits.WINDOW_BYTES)
        self.columns = Columns(index)
        self.masks = Masks(index, masks, out)
        self.explanations = Explanations.read(index.folder, index.units)
        self.browser = Browser(index, self.columns, self.explanations, self.masks.removed_rows)
        self._overview = counted(self.columns, self.browser.labels)
        self._inspection = Inspection(None, index)

    def info(self) -> dict[str, Any]:
        """What the index was made from, and what the page can filter by."""
        info = self.index.info
        return {
            "name": self.index.folder.resolve().name,
            "model": info.model.name or "a model in memory",
            "fingerprint": info.model.fingerprint,
            "data": info.data.folder or "text in memory",
            "groups": info.model.groups,
            "keys": info.model.keys,
            "heads": info.model.heads,
            "layers": [self.layers(group) for group in range(info.model.groups)],
            "experts": info.units.experts,
            "tokens": info.num_tokens,
            "windows": sum(info.windows),
            "labels": self.browser.labels,
            "label_tokens": info.tokens,
            "top": info.settings.top,
            "token_counts": info.settings.tokens,
            "edges": self.index.edges,
            "part": info.part is not None,
            "columns": [*NUMBERS, *self.browser.scores],
            "scores": list(self.browser.scores),
            "explained": len(self.explanations),
            "masks": self.masks.counts(),
            "has_tokenizer": self.index.texts.tokenizer is not None,
        }

    def layers(self, group: int) -> list[int]:
        """The first and the last Monet layer of a routing group; a hybrid may have dense layers between them."""
        model = self.index.info.model
        last = model.last_layers or [end - 1 for end in [*model.layers[1:], model.num_layers]]
        return [model.layers[group], last[group]]

    def overview(self) -> dict[str, Any]:
        """Counts and histograms of experts by routing group; see `counted`."""
        return dict(self._overview)

    def browse(self, query: Query, offset: int, count: int) -> dict[str, Any]:
        """Rows of the table in order; errors as for `Browser.rows`."""
        if not 0 <= count <= limits.ROWS or offset < 0:
            raise ConfigError(f"count {count} must be from 0 to {limits.ROWS} rows, and offset {offset} at least 0")
        total, row_X = self.browser.page(query, offset, count)
        return {"total": total, "offset": offset, "rows": [self.row(int(row)) for row in row_X]}

    def row(self, row: int) -> dict[str, Any]:
        """One row of the table."""
        columns, unit = self.columns, self.columns.unit(row)
        label = int(columns.label_N[row])
        scores = {name: column[row].item() for name, column in self.browser.scores.items()}
        return {
            "name": unit.name,
            "kind": KINDS[columns.kind_N[row]],
            "group": unit.group,
            "i": unit.i,
            "j": unit.j,
            **{name: column[row].item() for name, column in columns.number.items()},
            "label": None if label < 0 else self.browser.labels[label],
            "tokens": self._tokens(row),
            "explanation": self.explanations.text(row),
            **({"scores": scores} if scores else {}),
        }

    def unit(self, name: str) -> Unit:
        """A unit by name.

        Raises:
            ConfigError: the name has another form, or there is no such unit.
        """
        if len(name) > limits.QUERY or "," in name:
            raise ConfigError(f"expert {name[:80]!r}: name one, such as 0:17, or a half as 0:i3 or 0:j5")
        (unit,) = self.index.units.parse(name)
        return unit

    def expert(self, unit: Unit, around: int = limits.AROUND) -> dict[str, Any]:
        """One unit: its row, labels, histogram, contexts, samples, masks and explanations.

        Args:
            unit: the unit.
            around: tokens before and after the token of a context.
        """
        row = self.columns.row(unit)
        keys = self.index.units
        halves = [] if unit.kind != "pair" else [f"{unit.group}:i{unit.i}", f"{unit.group}:j{unit.j}"]
        same_kind = {"pair": keys.pairs, "first": keys.keys, "second": keys.keys}[unit.kind]
        begin = {"pair": 0, "first": keys.pairs, "second": keys.pairs + keys.keys}[unit.kind]
        place = unit.number - begin
        return {
            **self.row(row),
            "id": unit.number if unit.kind == "pair" else None,
            "layers": self.layers(unit.group),
            "previous": keys.unit(unit.group, begin + (place - 1) % same_kind).name,
            "next": keys.unit(unit.group, begin + (place + 1) % same_kind).name,
            "halves": halves,
            "label_means": list(self.index.label_means(unit).values()),
            "histogram": self.index.histogram(unit).tolist(),
            "contexts": [self.context(one, around) for one in self.index.contexts(unit)],
            "samples": [self.context(one, around) for one in self.index.samples(unit)],
            "masks": self.masks.removing(unit),
            "explained": self.explanations.of(row),
        }

    def context(self, context: Context, around: int) -> dict[str, Any]:
        """A piece of the text around the token of a context."""
        window, piece = self.index.windows[context.window], cut(context.position, around)
        start = piece.start
        return {
            "window": context.window,
            "start": start,
            "position": context.position - start,
            "weight": short(context.weight),
            "interval": context.interval,
            "label": window.label,
            "document": window.document,
            "cut": [start > 0, piece.stop < len(window.ids)],
            "tokens": self.index.texts.piece(window.ids, piece),
        }

    def neighbours(self, unit: Unit, by: str, count: int) -> list[dict[str, Any]]:
        """Similar units; see `Expert.neighbours`.

        Raises:
            ConfigError: the kind of neighbours is not known, or a half has none of this kind.
        """
        if by not in NEIGHBOURS:
            raise ConfigError(f"neighbours by {by!r}: choose one of {', '.join(NEIGHBOURS)}")
        found = self._inspection.named(unit.name).neighbours(by, min(count, limits.ROWS))
        return [{**self.row(self.columns.row(one.expert.unit)), "similarity": short(one.similarity)} for one in found]

    def _tokens(self, row: int) -> list[list[Any]]:
        """Texts of the most frequent firing tokens, with their firings."""
        pairs = zip(self.columns.token_NF[row].tolist(), self.columns.firings_NF[row].tolist(), strict=True)
        return [[self.index.texts.text(token), firings] for token, firings in pairs if token >= 0]


def cut(position: int, around: int) -> slice:
    """The places of the tokens around a token."""
    return slice(max(0, position - around), position + around + 1)


def short(value: float) -> float:
    """Four digits, which is more than the page shows."""
    return float(f"{value:.4g}")
