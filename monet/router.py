"""Product-key router: logits on two axes, a threshold from running statistics, sparse probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from monet.configuration_monet import MonetConfig
from monet.float32_buffers import Float32Buffers
from monet.kernels.dispatch import without_autocast
from monet.kernels.routing.op import batch_statistics, route_with_losses, thresholded_softmax
from monet.kernels.routing.reference import BatchStatistics, normal_quantile, raw_threshold
from monet.losses import RouterLoss, ambiguity_loss, uniformity_loss

_EPS = 1e-5
_MOMENTUM = 0.1


class RouterMetrics(NamedTuple):
    """What a router did with a batch, detached from the graph; padded tokens are not counted.

    uniformity, ambiguity: scalars, the paper's losses.
    active_per_head: scalar, mean number of active keys a token, axis and head.
    fired_2HE: int64, for each axis, head and key the number of tokens at which it was active.
    """

    uniformity: Tensor
    ambiguity: Tensor
    active_per_head: Tensor
    fired_2HE: Tensor


class RouterLosses(NamedTuple):
    """What a router's forward is needed for after the layers: differentiable scalars, and metrics."""

    uniformity: Tensor
    ambiguity: Tensor
    metrics: RouterMetrics


class RouterOutput(NamedTuple):
    """Routing probabilities and by-products of one router.

    g1_BTHE, g2_BTHE: exactly 0 at inactive keys, rows sum to one; float32 where that was asked for, else `gates`.
    gates: both in the dtype of the logits, one tensor for all layers of the group, which mix with them.
    uniformity, ambiguity: differentiable scalars, or None when no losses were asked for.
    metrics: RouterMetrics, or None likewise.
    statistics: moments of both axes' logits in this batch, or None unless the router is learning.
    """

    g1_BTHE: Tensor
    g2_BTHE: Tensor
    gates: tuple[Tensor, Tensor]
    uniformity: Tensor | None = None
    ambiguity: Tensor | None = None
    metrics: RouterMetrics | None = None
    statistics: tuple[BatchStatistics, BatchStatistics] | None = None

    @property
    def losses(self) -> RouterLosses | None:
        """The losses and metrics without the probabilities, so that nobody who keeps them keeps those."""
        if self.uniformity is None or self.ambiguity is None or self.metrics is None:
            return None
        return RouterLosses(self.uniformity, self.ambiguity, self.metrics)


class RoutingStatistics(Float32Buffers):
    """Running mean and variance of one axis' logits per head, under the names of the released BatchNorm.

    They stay float32 whatever the model is cast to: the threshold that is computed from them decides which experts act.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_heads, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(num_heads, dtype=torch.float32))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))

    @torch.no_grad()
    def update(self, batch: BatchStatistics) -> None:
        """Move the running statistics towards a batch's, with the unbiased variance; an empty batch changes nothing."""
        counts = batch.count > 1
        momentum = _MOMENTUM * counts.float()
        self.running_mean.lerp_(batch.mean_H.float(), momentum)
        self.running_var.lerp_((batch.m2_H / (batch.count - 1).clamp(min=1)).float(), momentum)
        self.num_batches_tracked += counts


class MonetRouter(nn.Module):
    """Scores the two product keys of every expert (arXiv 2412.04139, section 3; threshold as in the release).

    A learning router (train mode, weights that require gradients) takes its threshold from the batch; otherwise from
    the running statistics. `update_statistics` moves the latter and is called outside activation checkpointing, so a
    recomputed forward never counts twice.
    """

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.num_heads, self.num_keys = config.moe_heads, config.moe_experts
        self.quantile = normal_quantile(config.moe_topk, config.moe_experts)
        self.w1 = nn.Linear(config.hidden_size, self.num_heads * self.num_keys, bias=False)
        self.w2 = nn.Linear(config.hidden_size, self.num_heads * self.num_keys, bias=False)
        self.norm1 = RoutingStatistics(self.num_heads)
        self.norm2 = RoutingStatistics(self.num_heads)

    @property
    def is_learning(self) -> bool:
        """Whether the batch's own statistics set the threshold and move the running ones."""
        return self.training and self.w1.weight.requires_grad and self.w2.weight.requires_grad

    def forward(
        self,
        x_BTD: Tensor,
        token_mask_BT: Tensor | None = None,
        with_losses: bool = False,
        router_loss: RouterLoss | None = None,
        float32_probs: bool = False,
    ) -> RouterOutput:
        """Route a batch.

        Args:
            x_BTD: post-attention normalised states of the group's first layer.
            token_mask_BT: bool, False at padding, which then enters neither statistics nor losses; None for no padding.
            with_losses: also return the auxiliary losses and metrics.
            router_loss: chooses what the uniformity loss is computed on; None is the paper's.
            float32_probs: return probabilities in float32 even for half-precision logits, as the released router does;
                in training they are then saved beside the gates.
        """
        first, second = (
            self._axis(x_BTD, w, norm, token_mask_BT, with_losses, router_loss, float32_probs)
            for w, norm in ((self.w1, self.norm1), (self.w2, self.norm2))
        )
        g1_BTHE, g2_BTHE = first.g_BTHE, second.g_BTHE
        gates = (g1_BTHE.to(first.dtype), g2_BTHE.to(second.dtype))
        statistics = None
        if first.statistics is not None and second.statistics is not None:
            statistics = (first.statistics, second.statistics)
        if first.sums is None or second.sums is None:
            return RouterOutput(g1_BTHE, g2_BTHE, gates, statistics=statistics)
        sums = (first.sums, second.sums)
        paper_uniformity = uniformity_loss(torch.stack([axis.mean_HE for axis in sums]))
        ambiguity = ambiguity_loss(torch.stack([axis.mean_max_H for axis in sums]))
        targets = [axis.target_HE for axis in sums if axis.target_HE is not None]
        uniformity = uniformity_loss(torch.stack(targets)) if targets else paper_uniformity
        fired_2HE = torch.stack([axis.fired_HE for axis in sums])
        tokens = torch.tensor(x_BTD[..., 0].numel()) if token_mask_BT is None else token_mask_BT.sum()
        active_per_head = fired_2HE.sum() / (2 * self.num_heads * tokens.clamp(min=1))
        metrics = RouterMetrics(paper_uniformity.detach(), ambiguity.detach(), active_per_head, fired_2HE)
        return RouterOutput(g1_BTHE, g2_BTHE, gates, uniformity, ambiguity, metrics, statistics)

    @torch.no_grad()
    def update_statistics(self, output: RouterOutput) -> None:
        """Move the running statistics by what a learning forward saw; does nothing after any other forward."""
        if output.statistics is not None:
            self.norm1.update(output.statistics[0])
            self.norm2.update(output.statistics[1])

    def _axis(
        self,
        x_BTD: Tensor,
        w: nn.Linear,
        norm: RoutingStatistics,
        token_mask_BT: Tensor | None,
        with_losses: bool,
        router_loss: RouterLoss | None,
        float32_probs: bool,
    ) -> _Axis:
        B, T, _ = x_BTD.shape
        H, E = self.num_heads, self.num_keys
        z_TP = w(x_BTD.flatten(0, 1))
        # Whoever hooks the linear keeps the logits; otherwise they become the probabilities in place.
        overwrite = not (w._forward_hooks or w._backward_hooks)
        dtype = None if float32_probs else z_TP.dtype
        # Autocast would take the means below to half precision, where those of rare keys vanish.
        with without_autocast(z_TP.device):
            statistics, mean_H, var_H = None, norm.running_mean, norm.running_var
            if self.is_learning:
                statistics = batch_statistics(z_TP.view(B, T, H, E), token_mask_BT)
                mean_H, var_H = statistics.mean_H, statistics.m2_H / statistics.count.clamp(min=1)
            threshold_H = raw_threshold(mean_H, var_H, self.quantile, _EPS)
            if not with_losses:
                g_TP = thresholded_softmax(z_TP, threshold_H, overwrite=overwrite, dtype=dtype)
                return _Axis(g_TP.view(B, T, H, E), z_TP.dtype, statistics)
            spread = "routing" if router_loss is None else router_loss.uniformity_on
            width_H = None
            if router_loss is not None and spread == "firing":
                width_H = router_loss.firing_width * (var_H.double() + _EPS).sqrt()
            weight_T = None if token_mask_BT is None else _token_weights(token_mask_BT)
            routed = route_with_losses(
                z_TP, threshold_H, weight_T, width_H, spread=spread, overwrite=overwrite, dtype=dtype
            )
        target_HE = None
        if routed.share_HE is not None:
            target_HE = routed.share_HE / routed.share_HE.sum(-1, keepdim=True).clamp(min=1e-9)
        sums = _AxisSums(routed.mean_HE, routed.mean_max_H, routed.fired_HE, target_HE)
        return _Axis(routed.g_TP.view(B, T, H, E), z_TP.dtype, statistics, sums)


class _AxisSums(NamedTuple):
    mean_HE: Tensor
    mean_max_H: Tensor
    fired_HE: Tensor
    target_HE: Tensor | None


class _Axis(NamedTuple):
    g_BTHE: Tensor
    dtype: torch.dtype  # of the logits
    statistics: BatchStatistics | None
    sums: _AxisSums | None = None


def _token_weights(token_mask_BT: Tensor) -> Tensor:
    """(B*T,) float32: what each token counts in a mean over the unmasked ones."""
    weight_T = token_mask_BT.flatten().float()
    return weight_T / weight_T.sum().clamp(min=1)
