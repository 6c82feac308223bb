"""The tokens that an expert promotes or suppresses: read from its weights, or measured on its contexts.

Static: the expert's mean output for a random normalised input, through the final norm's weight and the unembedding,
summed over the layers of its group. Later layers are skipped, and the final norm's scale is frozen at 1, so the numbers
are logits times the size of the residual stream. Measured: logits with the expert minus logits without it, over
contexts in which it fires. Dims: V token ids, X contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from monet.errors import ConfigError
from monet.eval.core.loading import evaluating
from monet.eval.index.index import Context
from monet.eval.index.text import Window
from monet.eval.index.units import Unit
from monet.eval.inspection.networks import dense_expert, mask_of, monet_layers

How = Literal["static", "measured"]

# Experts whose effects on all tokens are in memory together.
_BLOCK = 64


@dataclass(frozen=True)
class Promotion:
    """What an expert does to the next token.

    Attributes:
        how: static or measured.
        effect_V: float32 on the CPU, effect on each token's logit; positive numbers promote it.
        contexts: number of contexts of a measurement; 0 for a static effect.
        error_V: standard error of the mean over contexts; None for a static effect or one context.
    """

    how: How
    effect_V: Tensor
    contexts: int = 0
    error_V: Tensor | None = None

    def promoted(self, count: int = 10) -> list[tuple[int, float]]:
        """Token ids with the largest effects, largest first."""
        return self._best(count, largest=True)

    def suppressed(self, count: int = 10) -> list[tuple[int, float]]:
        """Token ids with the smallest effects, smallest first."""
        return self._best(count, largest=False)

    def _best(self, count: int, largest: bool) -> list[tuple[int, float]]:
        order = self.effect_V.sort(descending=largest, stable=True)
        count = min(count, len(self.effect_V))
        return list(zip(order.indices[:count].tolist(), order.values[:count].tolist(), strict=True))


def static(model: Any, unit: Unit) -> Promotion:
    """The effect that an expert's weights have on the logits.

    Args:
        model: a MonetForCausalLM.
        unit: an expert; a half has no output by itself.

    Raises:
        ConfigError: the unit is a half, or the expert's weights cannot be read.
    """
    return next(static_of_each(model, [unit]))


def static_of_each(model: Any, units: Sequence[Unit]) -> Iterator[Promotion]:
    """The same for many experts, in their order. Each float32 copy of the unembedding serves a block of experts.

    Args:
        model: a MonetForCausalLM.
        units: experts.

    Raises:
        ConfigError: a unit is a half, or an expert's weights cannot be read.
    """
    for unit in units:
        if unit.kind != "pair":
            raise ConfigError(
                f"unit {unit.name} is a half, whose output depends on the other key; "
                "use how='measured', or name an expert"
            )
    for begin in range(0, len(units), _BLOCK):
        with torch.no_grad():
            direction_XD = torch.stack([_direction(model, unit) for unit in units[begin : begin + _BLOCK]])
            seen_XD = direction_XD * model.base_model.norm.weight.float()
            effect_XV = (seen_XD @ model.lm_head.weight.float().T).cpu()
        for effect_V in effect_XV:
            yield Promotion("static", effect_V)


def _direction(model: Any, unit: Unit) -> Tensor:
    """The expert's mean output, summed over the layers of its group: (D,), float32."""
    assert unit.i is not None and unit.j is not None
    direction_D = torch.zeros((), device=model.lm_head.weight.device)
    for _, layer in monet_layers(model, unit.group):
        expert = dense_expert(layer.moe, unit.i, unit.j)
        output_D = expert.mean_output(layer.post_attention_layernorm.weight)
        direction_D = direction_D + output_D.float().to(direction_D.device)
    return direction_D


def measured(model: Any, unit: Unit, contexts: Sequence[tuple[Context, Window]]) -> Promotion:
    """The mean change of the logits at the tokens at which a unit fires, if it is removed; with changed sign.

    Each context takes one forward pass over its window up to the token, with and without the unit.

    Args:
        model: a MonetForCausalLM.
        unit: an expert or a half.
        contexts: contexts with their windows.

    Raises:
        ConfigError: there is no context.
    """
    if not contexts:
        raise ConfigError(f"unit {unit.name} has no context in the index, so nothing can be measured; use how='static'")
    mask = mask_of(model, [unit])
    effects = []
    with evaluating(model):
        for context, window in contexts:
            end = context.position + 1
            given: dict[str, Any] = {"input_ids": torch.tensor([window.ids[:end]] * 2, device=model.device)}
            if window.position_ids is not None:
                given["position_ids"] = torch.tensor([window.position_ids[:end]] * 2, device=model.device)
            logits_2V = model(**given, expert_mask=[None, mask], use_cache=False, logits_to_keep=1).logits[:, -1]
            effects.append((logits_2V[0].float() - logits_2V[1].float()).cpu())
    effect_XV = torch.stack(effects)
    error_V = None if len(effects) < 2 else effect_XV.std(0) / len(effects) ** 0.5
    return Promotion("measured", effect_XV.mean(0), len(effects), error_V)
