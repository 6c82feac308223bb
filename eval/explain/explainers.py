"""Explainers: what turns the contexts of a unit into a text. Here are the interface and the two baselines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from monet.eval.explain.excerpts import Excerpt
from monet.eval.index.units import Unit

# Tokens that the baseline names.
TOKENS = 5
# What its explanations of labels begin with.
LABEL = "label: "


@dataclass(frozen=True)
class Named:
    """An explanation.

    Attributes:
        text: the explanation; "" if there is none.
        failed: why there is none.
    """

    text: str
    failed: str = ""


class Explainer(Protocol):
    """Explains units."""

    @property
    def key(self) -> dict[str, Any]:
        """Everything that an explanation depends on, JSON-able, without secrets."""
        ...

    @property
    def model(self) -> str:
        """Name of the model that writes; "" for a baseline."""
        ...

    @property
    def at_once(self) -> int:
        """Number of units that a call should take."""
        ...

    def explain(self, units: Sequence[tuple[Unit, list[Excerpt]]]) -> list[Named]:
        """One explanation for each unit, from its excerpts, of which there is at least one."""
        ...


class TokensExplainer:
    """The most frequent firing tokens of the contexts; of equally frequent ones, the first in the contexts."""

    key = {"explainer": "tokens", "tokens": TOKENS}
    model = ""
    at_once = 64

    def explain(self, units: Sequence[tuple[Unit, list[Excerpt]]]) -> list[Named]:
        """For example `tokens: " the", " der"`; each token is in JSON quotes."""
        found = []
        for _, excerpts in units:
            counts = Counter(one.token for one in excerpts if one.token)
            shown = ", ".join(json.dumps(token, ensure_ascii=False) for token, _ in counts.most_common(TOKENS))
            found.append(Named(f"tokens: {shown}") if shown else Named("", "no text at its tokens"))
        return found


class LabelExplainer:
    """The most frequent label of the contexts; of equally frequent ones, the first in the alphabet."""

    key = {"explainer": "label"}
    model = ""
    at_once = 64

    def explain(self, units: Sequence[tuple[Unit, list[Excerpt]]]) -> list[Named]:
        """For example `label: german`."""
        found = []
        for _, excerpts in units:
            counts = Counter(one.label for one in excerpts)
            found.append(Named(f"{LABEL}{min(counts, key=lambda label: (-counts[label], label))}"))
        return found
