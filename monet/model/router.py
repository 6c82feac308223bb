"""Product-key router: logits on two axes, a threshold from running statistics, and sparse probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monet.configuration_monet import MonetConfig
from monet.errors import ConfigError
from monet.kernels.checks import is_watched
from monet.kernels.dispatch import without_autocast
from monet.kernels.routing.op import (
    batch_statistics,
    facts_about_gates,
    rounds_in_kernel,
    route_with_losses,
    thresholded_softmax,
)
from monet.kernels.routing.reference import (
    BatchStatistics,
    RoutingSums,
    merge_statistics,
    normal_quantile,
    raw_threshold,
)
from monet.kernels.shared import GateFacts, SharedGates, share
from monet.model.float32_buffers import Float32Buffers
from monet.model.losses import RouterLoss, RouterLosses, RouterMetrics, RouterSums, losses_of
from monet.model.ranks import GlobalBatch

_EPS = 1e-5
_MOMENTUM = 0.1


class Shown:
    """The probabilities that a router returned, kept to detect changes by a hook."""

    def __init__(self, g1_BTHE: Tensor, g2_BTHE: Tensor) -> None:
        self._probs = (g1_BTHE, g2_BTHE)
        self._versions = None if any(g.is_inference() for g in self._probs) else [g._version for g in self._probs]

    def are_unchanged(self, g1_BTHE: Tensor, g2_BTHE: Tensor) -> bool:
        """Whether these tensors are the same and unmodified; False if torch does not count writes to them."""
        same = g1_BTHE is self._probs[0] and g2_BTHE is self._probs[1]
        return same and [g._version for g in self._probs] == self._versions if self._versions else False


class RouterOutput(NamedTuple):
    """Routing probabilities and further results of one router.

    g1_BTHE, g2_BTHE: exactly 0 at inactive keys, rows sum to one; float32 if that was requested, else `gates`.
    gates: both in the dtype of the logits, one tensor for all layers of the group, which mix with them.
    sums: the sums that losses and metrics are computed from; None if they were not requested.
    statistics: moments of both axes' logits in this batch; None unless the router is learning.
    shared: what the layers of the group know in common about `gates`, passed to each of them; None if nothing is known.
    shown: detects changes by a hook to g1_BTHE and g2_BTHE; None if no hook was expected.
    """

    g1_BTHE: Tensor
    g2_BTHE: Tensor
    gates: tuple[Tensor, Tensor]
    sums: RouterSums | None = None
    statistics: tuple[BatchStatistics, BatchStatistics] | None = None
    shared: SharedGates | None = None
    shown: Shown | None = None

    @property
    def losses(self) -> RouterLosses | None:
        """Losses and metrics of only this batch."""
        return None if self.sums is None else losses_of(self.sums)

    @property
    def uniformity(self) -> Tensor | None:
        """Differentiable scalar; None if no losses were requested."""
        return None if self.losses is None else self.losses.uniformity

    @property
    def ambiguity(self) -> Tensor | None:
        """Differentiable scalar; None if no losses were requested."""
        return None if self.losses is None else self.losses.ambiguity

    @property
    def metrics(self) -> RouterMetrics | None:
        """Detached from the graph; None if no losses were requested."""
        return None if self.losses is None else self.losses.metrics


class RoutingStatistics(Float32Buffers):
    """Running mean and variance of one axis' logits per head, under the names of the released BatchNorm.

    They stay float32 under every cast of the model: the threshold computed from them decides which experts are active.
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
        """Move the running statistics towards a batch's, with the unbiased variance; skips an empty batch."""
        counts = batch.count > 1
        momentum = _MOMENTUM * counts.float()
        self.running_mean.lerp_(batch.mean_H.float(), momentum)
        self.running_var.lerp_((batch.m2_H / (batch.count - 1).clamp(min=1)).float(), momentum)
        self.num_batches_tracked += counts


class MonetRouter(nn.Module):
    """Scores the two product keys of every expert (arXiv 2412.04139, section 3; threshold as in the release).

    A learning router (train mode, weights that require gradients) takes its threshold from the batch, any other router
    from the running statistics. `update_statistics` moves the running statistics. It is called outside activation
    checkpointing, so a recomputed forward never counts twice.

    Attributes:
        ranks: learning routers compute statistics over the batches of all ranks; None uses only this process's batch.
        collects_statistics: if True, `update_statistics` only collects statistics, and `commit_statistics` then moves
            the running statistics once, by all that were collected.
    """

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.num_heads, self.num_keys = config.moe_heads, config.moe_experts
        self.quantile = normal_quantile(config.moe_topk, config.moe_experts)
        self.w1 = nn.Linear(config.hidden_size, self.num_heads * self.num_keys, bias=False)
        self.w2 = nn.Linear(config.hidden_size, self.num_heads * self.num_keys, bias=False)
        self.norm1 = RoutingStatistics(self.num_heads)
        self.norm2 = RoutingStatistics(self.num_heads)
        self.ranks: GlobalBatch | None = None
        self.collects_statistics = False
        self._collected: tuple[BatchStatistics, BatchStatistics] | None = None

    @property
    def is_learning(self) -> bool:
        """Whether the batch's own statistics set the threshold and move the running statistics."""
        return self.training and self.w1.weight.requires_grad and self.w2.weight.requires_grad

    @property
    def is_hooked(self) -> bool:
        """Whether someone may change the output: with a forward hook, or with a `forward` that replaces this one."""
        return bool(self._forward_hooks) or (not torch.compiler.is_compiling() and "forward" in vars(self))

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
            token_mask_BT: bool, False at padding, which then counts neither in statistics nor in losses; None for no
                padding.
            with_losses: also return the auxiliary losses and metrics.
            router_loss: chooses what the uniformity loss is computed on; None uses the paper's loss.
            float32_probs: return probabilities in float32 even for half-precision logits, as the released router does;
                training then saves them in addition to the gates. The gates have the same bits in both cases.
        """
        B, T, _ = x_BTD.shape
        logits = [w(x_BTD.flatten(0, 1)) for w in (self.w1, self.w2)]
        statistics: tuple[BatchStatistics, BatchStatistics] | None = None
        if self.is_learning:
            # Autocast would compute these sums in half precision.
            with without_autocast(x_BTD.device):
                first, second = (
                    batch_statistics(z_TP.view(B, T, self.num_heads, self.num_keys), token_mask_BT) for z_TP in logits
                )
                statistics = (first, second) if self.ranks is None else self.ranks.merge(first, second)
        axes: list[_Axis] = []
        for place, (w, norm) in enumerate(((self.w1, self.norm1), (self.w2, self.norm2))):
            moments = None if statistics is None else statistics[place]
            # popped: after this, the logits of the axis are not needed
            axes.append(
                self._axis(
                    logits.pop(0), (B, T), w, norm, moments, token_mask_BT, with_losses, router_loss, float32_probs
                )
            )
        g1_BTHE, g2_BTHE = (axis.g_BTHE for axis in axes)
        gates = (axes[0].gate_BTHE, axes[1].gate_BTHE)
        sums = [axis.sums for axis in axes if axis.sums is not None]
        first_facts, second_facts = (axis.facts for axis in axes)
        shared = None if first_facts is None or second_facts is None else share(gates, (first_facts, second_facts))
        shown = Shown(g1_BTHE, g2_BTHE) if self.is_hooked and not torch.compiler.is_compiling() else None
        if not sums:
            return RouterOutput(g1_BTHE, g2_BTHE, gates, statistics=statistics, shared=shared, shown=shown)
        shares = [axis.share_HE for axis in sums if axis.share_HE is not None]
        tokens = torch.tensor(B * T, device=x_BTD.device) if token_mask_BT is None else token_mask_BT.sum()
        router_sums = RouterSums(
            torch.stack([axis.mean_HE for axis in sums]),
            torch.stack([axis.mean_max_H for axis in sums]),
            torch.stack(shares) if shares else None,
            torch.stack([axis.fired_HE for axis in sums]),
            tokens,
        )
        return RouterOutput(g1_BTHE, g2_BTHE, gates, router_sums, statistics, shared, shown)

    def route(self, x_BTD: Tensor, float32_probs: bool = False, **options: Any) -> RouterOutput:
        """Call the router with its hooks, and use the probabilities that they return.

        A forward hook, or a library that traces the model (nnsight), sees float32 probabilities. It may write into
        them, or return changed ones, as a RouterOutput (`output._replace(g1_BTHE=...)`) or as a pair
        (g1_BTHE, g2_BTHE). The layers of the group then mix with the changed probabilities, in the dtype of the
        logits. A hook that changes nothing leaves the model's results and gradients bitwise identical.

        Args:
            x_BTD: as in `forward`.
            float32_probs: as in `forward`.
            options: the other arguments of `forward`.
        Raises:
            ConfigError: a hook returned another type, a pair in training, or probabilities of another shape.
        """
        hooked = self.is_hooked
        returned: Any = self(x_BTD, float32_probs=float32_probs or hooked, **options)
        if not hooked:
            return returned
        shape = (*x_BTD.shape[:2], self.num_heads, self.num_keys)
        probs = returned[:2] if isinstance(returned, tuple) and len(returned) in (2, len(RouterOutput._fields)) else ()
        if [getattr(g, "shape", None) for g in probs] != [shape, shape]:
            raise ConfigError(
                f"a hook on a router returned {type(returned).__name__} without two tensors of probabilities {shape}; "
                "return output._replace(g1_BTHE=...), or a pair (g1_BTHE, g2_BTHE)"
            )
        if isinstance(returned, RouterOutput):
            if returned.shown is not None and returned.shown.are_unchanged(*probs):
                return returned
            dtypes = [gate.dtype for gate in returned.gates]
        elif self.is_learning or options.get("router_loss") is not None:
            raise ConfigError("a hook on a router returned a pair in training; return output._replace(g1_BTHE=...)")
        else:
            returned, dtypes = RouterOutput(*returned, gates=returned), [x_BTD.dtype, x_BTD.dtype]
        g1_BTHE, g2_BTHE = (g.to(dtype) for g, dtype in zip(probs, dtypes, strict=True))
        return returned._replace(gates=(g1_BTHE, g2_BTHE), shared=None)

    @torch.no_grad()
    def update_statistics(self, output: RouterOutput) -> None:
        """Move the running statistics by those of a learning forward; does nothing after any other forward."""
        if output.statistics is None:
            return
        if not self.collects_statistics:
            self._move(output.statistics)
        elif self._collected is None:
            self._collected = output.statistics
        else:
            first, second = (merge_statistics(*pair) for pair in zip(self._collected, output.statistics, strict=True))
            self._collected = (first, second)

    @torch.no_grad()
    def commit_statistics(self) -> None:
        """Move the running statistics by all that `update_statistics` collected, and drop the collected ones."""
        if self._collected is not None:
            self._move(self._collected)
            self._collected = None

    def _move(self, statistics: tuple[BatchStatistics, BatchStatistics]) -> None:
        self.norm1.update(statistics[0])
        self.norm2.update(statistics[1])

    def _axis(
        self,
        z_TP: Tensor,
        shape_BT: tuple[int, int],
        w: nn.Linear,
        norm: RoutingStatistics,
        statistics: BatchStatistics | None,
        token_mask_BT: Tensor | None,
        with_losses: bool,
        router_loss: RouterLoss | None,
        float32_probs: bool,
    ) -> _Axis:
        # A hook on the linear may keep the logits. Without a hook the probabilities overwrite them in memory.
        overwrite = not is_watched(w)
        apart = float32_probs and rounds_in_kernel(z_TP)
        dtype = None if float32_probs and not apart else z_TP.dtype
        shape = (*shape_BT, self.num_heads, self.num_keys)
        # Autocast would compute the means below in half precision, in which those of rare keys vanish.
        with without_autocast(z_TP.device):
            mean_H, var_H = norm.running_mean, norm.running_var
            if statistics is not None:
                mean_H, var_H = statistics.mean_H, statistics.m2_H / statistics.count.clamp(min=1)
            threshold_H = raw_threshold(mean_H, var_H, self.quantile, _EPS)
            exact_TP = thresholded_softmax(z_TP, threshold_H) if apart else None
            if not with_losses:
                g_TP = thresholded_softmax(z_TP, threshold_H, overwrite=overwrite, dtype=dtype)
                facts = facts_about_gates(z_TP, threshold_H, with_losses)
                return _Axis.of(g_TP, exact_TP, shape, z_TP.dtype, facts)
            spread = "routing" if router_loss is None else router_loss.uniformity_on
            width_H = None
            if router_loss is not None and spread == "firing":
                width_H = router_loss.firing_width * (var_H.double() + _EPS).sqrt()
            weight_T = None if token_mask_BT is None else _token_weights(token_mask_BT)
            routed = route_with_losses(
                z_TP, threshold_H, weight_T, width_H, spread=spread, overwrite=overwrite, dtype=dtype
            )
            facts = facts_about_gates(z_TP, threshold_H, with_losses)
        return _Axis.of(routed.g_TP, exact_TP, shape, z_TP.dtype, facts, routed)


class _Axis(NamedTuple):
    g_BTHE: Tensor
    gate_BTHE: Tensor
    facts: GateFacts | None
    sums: RoutingSums | None

    @classmethod
    def of(
        cls,
        g_TP: Tensor,
        exact_TP: Tensor | None,
        shape_BTHE: tuple[int, ...],
        dtype: torch.dtype,
        facts: GateFacts | None,
        sums: RoutingSums | None = None,
    ) -> _Axis:
        """Probabilities (`exact_TP`, or `g_TP` if that is None), and the gates: `g_TP` in the dtype of the logits."""
        g_BTHE = g_TP.view(shape_BTHE)
        return cls(g_BTHE if exact_TP is None else exact_TP.view(shape_BTHE), g_BTHE.to(dtype), facts, sums)


def _token_weights(token_mask_BT: Tensor) -> Tensor:
    """(B*T,) float32: the weight of each token in a mean over the unmasked tokens."""
    weight_T = token_mask_BT.flatten().float()
    return weight_T / weight_T.sum().clamp(min=1)
