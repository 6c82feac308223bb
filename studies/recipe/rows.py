"""The rows of the table of recipes: each changes one thing of a conversion's first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from monet.errors import ConfigError

BASE = "base"
Kind = Literal["monet", "transcoder", "skip transcoder"]


@dataclass(frozen=True)
class Row:
    """One recipe.

    Args:
        question: what the row varies.
        change: what differs from the base, in words.
        experts, local: changed options of `monet convert`, by name.
        layers: other layers than the base's; None takes the same.
        kind: what learns the MLPs.
        k: most active latents of a transcoder's token; None takes as many as the base has hidden units of active
            experts.
        skip_rank: rank, on each axis, of a linear path that is folded into every key; see `studies.recipe.skip`.
        raw: learn in the dense model's own units, from the same start, in place of standardised coordinates.
    """

    question: str
    change: str
    experts: Mapping[str, Any] = field(default_factory=dict)
    local: Mapping[str, Any] = field(default_factory=dict)
    layers: str | None = None
    kind: Kind = "monet"
    k: int | None = None
    skip_rank: int = 0
    raw: bool = False

    @property
    def needs_base(self) -> bool:
        """Whether the base must be measured first."""
        return self.kind != "monet" and self.k is None


ROWS: dict[str, Row] = {
    BASE: Row("base", "the defaults of `monet convert`"),
    "random": Row("initialisation", "random weights", {"init": "random"}),
    "horizontal": Row("decomposition", "horizontal", {"moe_decompose": "horizontal"}),
    "heads-own": Row("keys of a head", "a share of 1/H, the same on both axes", {"heads": "own"}),
    "heads-permuted": Row("keys of a head", "a share of 1/H, others on the second axis", {"heads": "permuted"}),
    "k4": Row("k", "k = 4", {"moe_topk": 4}),
    "k16": Row("k", "k = 16", {"moe_topk": 16}),
    "annealed": Row("k", "k falls from 32 to 8 in the first half", local={"topk_start": 32}),
    "e128": Row("E and M", "E = 128, M = 48: as many parameters", {"moe_experts": 128}),
    "e512": Row("E and M", "E = 512, M = 12: as many parameters", {"moe_experts": 512}),
    "m12": Row("E and M", "M = 12: the weaker half of the neurons is left out", {"moe_dim": 12}),
    "m32": Row("E and M", "M = 32: a third more parameters", {"moe_dim": 32}),
    "skip": Row("skip path", "M = 32, a linear path of rank 4 in every key", {"moe_dim": 32}, skip_rank=2),
    "routers-2": Row("routers", "two layers share one", {"moe_groups": 2}),
    "routers-all": Row("routers", "all layers share one", {"moe_groups": 1000}),
    "rate-8e-4": Row("learning rate", "8e-4", local={"learning_rate": 8e-4}),
    "rate-3e-3": Row("learning rate", "3e-3", local={"learning_rate": 3e-3}),
    "raw": Row("normalisation", "the dense model's own units, from the same start", raw=True),
    "ten-layers": Row("layers at once", "layers 19-28", layers="19-28"),
    "transcoder": Row("transcoder", "k as in the base", kind="transcoder"),
    "transcoder-64": Row("transcoder", "k = 64", kind="transcoder", k=64),
    "skip-transcoder": Row("transcoder", "k as in the base, affine skip path", kind="skip transcoder"),
    "skip-transcoder-64": Row("transcoder", "k = 64, affine skip path", kind="skip transcoder", k=64),
}  # fmt: skip

# What was considered and has no row, with the reason.
NOT_TRIED = {
    "a skip path of full rank": "released Monet layers have none; folded into the weights, a path of rank r takes 2 r "
    "hidden units of every key, on each axis",
    "gated (GLU) experts": "the released architecture has none",
    "the routers' uniformity loss in stage 1": "no key died",
}


def chosen(names: list[str]) -> list[str]:
    """The names of rows to run, in the table's order, with the base first if a row needs it.

    Args:
        names: rows; none means all.
    Raises:
        ConfigError: a row is unknown.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise ConfigError(f"rows {', '.join(unknown)}: unknown; the rows are {', '.join(ROWS)}")
    wanted = set(names or ROWS)
    if any(ROWS[name].needs_base for name in wanted):
        wanted.add(BASE)
    return [name for name in ROWS if name in wanted]
