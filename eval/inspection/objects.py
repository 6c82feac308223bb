"""Objects for notebooks: `monet.inspect(model, index).expert(group, i, j)`. Every object has a display in Jupyter."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.core.loading import load_model
from monet.eval.index.index import Context, Index
from monet.eval.index.text import Window
from monet.eval.index.units import Unit
from monet.eval.inspection import html
from monet.eval.inspection.frames import frame
from monet.eval.inspection.networks import mask_of
from monet.eval.inspection.promoted import How, Promotion, measured, static
from monet.eval.inspection.weights import unit_weights
from monet.masks.expert_mask import ExpertMask

if TYPE_CHECKING:
    import pandas as pd

    from monet.model.modeling_monet import MonetForCausalLM

By = Literal["key", "contexts", "labels"]
_NONE = 2**32 - 1


def inspect(
    model: MonetForCausalLM | str | os.PathLike[str] | None, index: Index | str | os.PathLike[str]
) -> Inspection:
    """Open an index, with its model.

    Args:
        model: the model that was indexed, its folder or hub name; None for everything that needs no forward pass.
        index: the index, or its folder.

    Raises:
        CheckpointError: the index is damaged, or belongs to another model.
    """
    if isinstance(model, (str, os.PathLike)):
        model = load_model(os.fspath(model))
    if not isinstance(index, Index):
        index = Index(index, model)
    elif model is not None:
        index = Index(index.folder, model)
    return Inspection(model, index)


class Inspection:
    """An index with its model.

    Attributes:
        index: the opened index.
    """

    def __init__(self, model: MonetForCausalLM | None, index: Index) -> None:
        self._model = model
        self.index = index

    @property
    def model(self) -> MonetForCausalLM:
        """The model.

        Raises:
            ConfigError: none was given.
        """
        if self._model is None:
            raise ConfigError("this needs the model; open the index with it: monet.inspect(model, index)")
        return self._model

    def expert(self, group: int, i: int, j: int) -> Expert:
        """Expert (i, j) of a routing group.

        Raises:
            ConfigError: the model has no such group or key.
        """
        return Expert(self, self.index.units.pair(group, i, j))

    def half(self, group: int, i: int | None = None, j: int | None = None) -> Expert:
        """All experts of a group with one key, as one unit. Give either i or j.

        Raises:
            ConfigError: both or neither are given, or the model has no such group or key.
        """
        return Expert(self, self.index.units.half(group, i, j))

    def named(self, name: str) -> Expert:
        """A unit by its name, such as 0:17, 0:i3 or 0:j5.

        Raises:
            ConfigError: the name has another form, or there is no such unit.
        """
        (unit,) = self.index.units.parse(name)
        return Expert(self, unit)

    def frame(self, columns: list[str] | None = None, filters: Any = None) -> pd.DataFrame:
        """The table of experts as a pandas frame; arguments as for `Index.table`.

        Raises:
            ConfigError: pandas is not installed.
        """
        return frame(self.index.table(columns, filters))

    def __repr__(self) -> str:
        info = self.index.info
        return f"Inspection({info.units.experts:,} experts, {info.num_tokens:,} tokens, {self.index.folder})"

    def _repr_html_(self) -> str:
        return html.inspection(self.index)


@dataclass(frozen=True)
class Neighbour:
    """A unit that is similar to another one.

    Attributes:
        expert: the unit.
        similarity: 0 to 1; see `Expert.neighbours`.
    """

    expert: Expert
    similarity: float


class Expert:
    """One expert or half: where it fires, and what it does.

    Args:
        inspection: index and model.
        unit: the unit.
    """

    def __init__(self, inspection: Inspection, unit: Unit) -> None:
        self._inspection = inspection
        self._index = inspection.index
        self.unit = unit

    @cached_property
    def row(self) -> dict[str, Any]:
        """The unit's row of the table of experts: count, rate, mean, max, best_label, tokens and more."""
        return self._index.row(self.unit)

    @cached_property
    def contexts(self) -> list[Context]:
        """Its strongest contexts, at most one from each window, strongest first."""
        return self._index.contexts(self.unit)

    @cached_property
    def samples(self) -> list[Context]:
        """Random contexts from each interval of weight."""
        return self._index.samples(self.unit)

    @property
    def histogram(self) -> NDArray[np.uint32]:
        """Firings in 16 bins of weight; `Index.edges` has their edges."""
        return self._index.histogram(self.unit)

    @property
    def label_means(self) -> dict[str, float]:
        """Mean weight per token, by label."""
        return self._index.label_means(self.unit)

    @property
    def tokens(self) -> list[tuple[str, float]]:
        """Texts of the tokens at which it fires most often, with the number of firings; large models have estimates."""
        return list(zip(self.row["token_texts"], self.row["token_firings"], strict=True))

    def window(self, context: Context) -> Window:
        """The window of a context."""
        return self._index.windows[context.window]

    def weights(self, context: Context) -> list[float]:
        """Its weight at every token of a context's window, by a forward pass.

        Raises:
            ConfigError: the index was opened without the model.
        """
        return unit_weights(self._inspection.model, self.window(context), [self.unit])[:, 0].tolist()

    def promotion(self, how: How = "static", contexts: int = 16) -> Promotion:
        """Its effect on every token's logit; see `monet.eval.inspection.promoted`.

        Args:
            how: static reads the weights; measured runs the model with and without the expert.
            contexts: number of contexts of a measurement.

        Raises:
            ConfigError: the index was opened without the model, or a half has no static effect.
        """
        model = self._inspection.model
        if how == "static":
            return static(model, self.unit)
        return measured(model, self.unit, [(one, self.window(one)) for one in self.contexts[:contexts]])

    def promoted(self, count: int = 10, how: How = "static") -> list[tuple[str, float]]:
        """Texts of the tokens that it promotes most, with the effects."""
        return [(self._index.texts.text(token), effect) for token, effect in self.promotion(how).promoted(count)]

    def suppressed(self, count: int = 10, how: How = "static") -> list[tuple[str, float]]:
        """Texts of the tokens that it suppresses most, with the effects."""
        return [(self._index.texts.text(token), effect) for token, effect in self.promotion(how).suppressed(count)]

    def neighbours(self, by: By = "contexts", count: int = 10) -> list[Neighbour]:
        """Similar units of the same kind and group, most similar first; of equally similar ones, lower numbers first.

        Args:
            by: contexts takes the share of common windows among the strongest contexts (Jaccard). labels takes the
                cosine of the mean weights by label. key does the same among experts with the same i or j.
            count: number of neighbours.

        Raises:
            ConfigError: a half has no expert with the same key.
        """
        similar_U = self._similarity(by)
        similar_U[self.unit.number] = -1.0
        order = np.argsort(-similar_U, kind="stable")[:count]
        units = [self._index.units.unit(self.unit.group, int(number)) for number in order if similar_U[number] > 0]
        return [Neighbour(Expert(self._inspection, unit), float(similar_U[unit.number])) for unit in units]

    def mask(self) -> ExpertMask:
        """The mask that removes it.

        Raises:
            ConfigError: the index was opened without the model.
        """
        mask = mask_of(self._inspection.model, [self.unit])
        return ExpertMask(mask.keep_REE, mask.provenance, self._index.info.model.fingerprint)

    def frame(self) -> pd.DataFrame:
        """Contexts and samples as a pandas frame: interval (null for a strongest context), window, position, weight,
        label, document, token and text.

        Raises:
            ConfigError: pandas is not installed.
        """
        rows = []
        for context in [*self.contexts, *self.samples]:
            window = self.window(context)
            texts = self._index.texts.texts(window.ids)
            rows.append(
                {
                    "interval": context.interval,
                    "window": context.window,
                    "position": context.position,
                    "weight": context.weight,
                    "label": window.label,
                    "document": window.document,
                    "token": texts[context.position],
                    "text": "".join(texts),
                }
            )
        return frame(rows)

    def __repr__(self) -> str:
        unit = self.unit
        name = f"Expert {unit.name}" if unit.kind == "pair" else f"Half {unit.name}"
        return (
            f"{name} (i={unit.i}, j={unit.j}): fires at {self.row['count']:,} of {self._index.info.num_tokens:,} tokens"
        )

    def _repr_html_(self) -> str:
        return html.expert(repr(self), self._index, self.row, self.tokens, self.contexts)

    def _similarity(self, by: By) -> NDArray[np.float64]:
        """Similarity of every unit of the group, (U,); -1 for units of another kind."""
        units, unit = self._index.units, self.unit
        begin, end = {
            "pair": (0, units.pairs),
            "first": (units.pairs, units.pairs + units.keys),
            "second": (units.pairs + units.keys, units.per_group),
        }[unit.kind]
        found = np.full(units.per_group, -1.0)
        if by == "contexts":
            window_UQ = self._index.context_windows(unit.group)
            own = window_UQ[unit.number]
            own = own[own != _NONE]
            kept_UQ = window_UQ[begin:end] != _NONE
            common = (np.isin(window_UQ[begin:end], own) & kept_UQ).sum(1)
            found[begin:end] = common / np.maximum(kept_UQ.sum(1) + len(own) - common, 1)
            return found
        mean_CU = self._index.means(unit.group)[:, begin:end]
        size_U = np.linalg.norm(mean_CU, axis=0)
        own_C = mean_CU[:, unit.number - begin]
        found[begin:end] = own_C @ mean_CU / np.maximum(size_U * np.linalg.norm(own_C), 1e-300)
        if by == "key":
            if unit.i is None or unit.j is None:
                raise ConfigError(f"unit {unit.name} is a half and shares no key with another half; use by='contexts'")
            number = np.arange(units.pairs)
            same = (number // units.keys == unit.i) | (number % units.keys == unit.j)
            found[: units.pairs][~same] = -1.0
        return found
