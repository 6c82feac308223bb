"""Results of the table of recipes as typed data: OUT/rows/NAME/result.json, and docs/conversion.json of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from monet.eval.core.results import Result


@dataclass(frozen=True)
class Routing:
    """How one router chose on held-out text; see `monet.convert.dense.measure.Activity`.

    Args:
        active_keys: active keys of an axis, over all heads, per token.
        keys_of_head: keys that a head ever used, of an axis.
        pairs: experts that ever acted.
    """

    active_keys: float
    keys_of_head: float
    pairs: int


@dataclass(frozen=True)
class Latents:
    """How the latents of a layer's transcoder acted on held-out text.

    Args:
        latents: number of latents.
        k: most active latents of a token.
        active: active latents per token.
        dead: latents that never acted.
    """

    latents: int
    k: int
    active: float
    dead: int


@dataclass(frozen=True)
class DomainLoss:
    """Next-token losses of one domain in nats per token, and KL(dense || with the new layers in place)."""

    name: str
    tokens: int
    loss_dense: float
    loss: float
    kl: float


@dataclass(frozen=True)
class RowResult(Result):
    """One trained recipe.

    Args:
        name, question, change: the row, see `studies.recipe.rows`.
        kind: "monet", "transcoder" or "skip transcoder".
        layers: the layers that learned.
        parameters: parameters of all these layers with their routers.
        tokens: tokens of the training.
        seconds, cpu_seconds: wall and processor seconds of start and training, without measurements.
        fvu_start, fvu: fraction of variance unexplained on held-out text by layer, before and after the training.
        curve: FVU on text that was new at that point, by tokens.
        routing: by the layer that owns the router; empty for transcoders.
        latents: by layer; empty for Monet layers.
        losses: by domain, with all layers in place; empty if they were not measured.
        held_out_tokens: tokens of the held-out text.
        settings: all settings of the training.
        provenance: versions, machine and date.
    """

    FORMAT: ClassVar[str] = "monet-recipe-row/1"
    COMMAND: ClassVar[str] = "python -m studies.recipe"

    name: str
    question: str
    change: str
    kind: str
    layers: list[int]
    parameters: int
    tokens: int
    seconds: float
    cpu_seconds: float
    fvu_start: dict[str, float]
    fvu: dict[str, float]
    curve: list[dict[str, Any]]
    routing: dict[str, Routing]
    latents: dict[str, Latents]
    losses: list[DomainLoss]
    held_out_tokens: int
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def mean_fvu(self, layers: list[str], start: bool = False) -> float:
        """Mean over some of the layers."""
        values = self.fvu_start if start else self.fvu
        return sum(values[layer] for layer in layers) / len(layers)

    @property
    def loss_rise(self) -> float | None:
        """Mean over the domains of the loss with the new layers minus that of the dense model; None if unknown."""
        rises = [one.loss - one.loss_dense for one in self.losses]
        return sum(rises) / len(rises) if rises else None

    @property
    def sentence(self) -> str:
        """The main number, in words."""
        return f"{self.name}: mean FVU {self.mean_fvu(list(self.fvu)):.4f} after {self.tokens:,} tokens"


@dataclass(frozen=True)
class RecipeResult(Result):
    """All rows, trained on equally many tokens of the same text in the same order.

    Args:
        model: the dense model.
        tokens: tokens of each row's training.
        layers: layers that all rows have, by which they are compared.
        rows: in the table's order.
        not_tried: what has no row, with the reason.
    """

    FORMAT: ClassVar[str] = "monet-recipe/1"
    COMMAND: ClassVar[str] = "python -m studies.recipe"

    model: str
    tokens: int
    layers: list[int]
    rows: list[RowResult]
    not_tried: dict[str, str]

    @property
    def sentence(self) -> str:
        """The best row, in words."""
        layers = list(map(str, self.layers))
        best = min(self.rows, key=lambda one: one.mean_fvu(layers))
        return (
            f"{len(self.rows)} recipes at {self.tokens:,} tokens; {best.name} has the lowest mean FVU, "
            f"{best.mean_fvu(layers):.4f}"
        )
