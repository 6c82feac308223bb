"""Which experts does a person ask for? A query filters and sorts the columns of an index.

Dims: N rows of the table, X chosen rows, V token ids.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monet.errors import ConfigError
from monet.eval.view import limits
from monet.eval.view.columns import NUMBERS

KINDS = ("pair", "half", "all")
# Scores of explanations, which are columns too where an index has them.
SCORES = ("detection", "fuzzing", "embedding", "intruder")
COLUMNS = (*NUMBERS, *SCORES)
# Orders of rows: columns, the place in the index, and how much of its firing is on the tokens that were searched.
SORTS = (*COLUMNS, "unit", "match")
_TEXTS = ("label", "token", "explanation", "mask")


@dataclass(frozen=True)
class Query:
    """A filter and an order.

    Attributes:
        kind: pair for experts, half for halves, all for both.
        group: routing group; None takes all.
        label: label with the largest mean weight.
        token: text that a firing token contains; upper and lower case are equal.
        whole: the firing token must equal `token`, without blanks around it.
        explanation: text that an explanation contains.
        mask: name of a mask that removes the unit.
        low, high: smallest and largest value of columns, inclusive; rows without a value are left out.
        sort: name in `SORTS`.
        descending: largest first.
    """

    kind: str = "pair"
    group: int | None = None
    label: str = ""
    token: str = ""
    whole: bool = False
    explanation: str = ""
    mask: str = ""
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    sort: str = "label_share"
    descending: bool = True

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Query:
        """From a request's parameters, such as `sort=-label_share`, `min.count=50`, `max.rate=0.1`, `label=german`.

        Args:
            words: texts or JSON values by name.

        Raises:
            ConfigError: a name or a value is not known.
        """
        found: dict[str, Any] = {"low": {}, "high": {}}
        for name, value in words.items():
            text = str(value)
            if len(text) > limits.QUERY:
                raise ConfigError(f"{name} has {len(text)} characters; give at most {limits.QUERY}")
            if text == "":
                continue
            end, _, column = name.partition(".")
            if end in ("min", "max") and column:
                _one_of("column", column, COLUMNS)
                found["low" if end == "min" else "high"][column] = _number(name, text)
            elif name in _TEXTS:
                found[name] = text
            elif name == "kind":
                found["kind"] = _one_of("kind", text, KINDS)
            elif name == "sort":
                found["descending"] = text.startswith("-")
                found["sort"] = _one_of("sort", text.removeprefix("-"), SORTS)
            elif name == "group":
                found["group"] = int(_number(name, text))
            elif name == "whole":
                found["whole"] = text in ("1", "true", "True")
            else:
                raise ConfigError(f"parameter {name!r} is not known{_near(name, cls.__annotations__)}")
        return cls(**found)


def _one_of(what: str, value: str, known: Any) -> str:
    if value not in known:
        raise ConfigError(f"{what} {value!r} is not known; it is one of {', '.join(known)}")
    return value


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ConfigError(f"{name} = {text!r} is no number")
    return value


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, [*known, "min.count", "max.count"], n=1)
    return f"; did you mean {near[0]}?" if near else ""
