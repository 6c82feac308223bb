"""The outputs of the model classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from monet.model.router import RouterLosses, RouterMetrics


@dataclass
class MonetModelOutput(BaseModelOutputWithPast):
    """Output of MonetModel.

    router_probs: one entry per layer: (g1_BTHE, g2_BTHE) in float32 if the layer owns a router, else None.
    router_losses: one `RouterLosses` per routing group, if losses were requested.
    """

    router_probs: tuple[tuple[Tensor, Tensor] | None, ...] | None = None
    router_losses: tuple[RouterLosses, ...] | None = None


@dataclass
class MonetCausalLMOutput(CausalLMOutputWithPast):
    """Output of MonetForCausalLM.

    loss: lm_loss plus the weighted auxiliary losses if `router_loss` was given, else only lm_loss.
    lm_loss, uniformity_loss, ambiguity_loss: the separate losses, scalars; auxiliary ones are averaged over routers.
    router_probs: see `MonetModelOutput`.
    router_metrics: one `RouterMetrics` per routing group.
    """

    router_probs: tuple[tuple[Tensor, Tensor] | None, ...] | None = None
    lm_loss: Tensor | None = None
    uniformity_loss: Tensor | None = None
    ambiguity_loss: Tensor | None = None
    router_metrics: tuple[RouterMetrics, ...] | None = None
