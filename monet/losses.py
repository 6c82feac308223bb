"""Losses as pure functions: next token, uniformity, ambiguity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monet.errors import ConfigError
from monet.kernels.checks import is_watched
from monet.ranks import GlobalBatch

# Floor of a mean before its logarithm: a key that no token reached keeps a finite loss and gradient.
_MEAN_FLOOR = 1e-9
_IGNORED = -100

UniformityTarget = Literal["routing", "softmax", "firing"]


@dataclass(frozen=True)
class RouterLoss:
    """How the two auxiliary losses enter the training loss. None of it changes inference.

    The defaults keep keys alive; the paper's own loss is RouterLoss(1e-3, 1e-3, "routing").

    Attributes:
        uniformity_weight: factor of the uniformity loss (lambda in the paper; 1e-3 there).
        ambiguity_weight: factor of the ambiguity loss (lambda in the paper; 1e-3 there).
        uniformity_on: what is to be uniform over the keys of a head. "routing": the mean routing probability, as in
            the paper; a key that never passes the threshold gets no gradient from it. "softmax": the mean of the
            softmax before thresholding. "firing": the mean of a smooth step at the threshold, which pulls a key that
            never fires towards the threshold however far below it lies.
        firing_width: width of that smooth step in standard deviations of the logits; only for "firing".

    Raises:
        ConfigError: a weight is negative or not finite, or the target is unknown.
    """

    uniformity_weight: float = 3e-2
    ambiguity_weight: float = 1e-3
    uniformity_on: UniformityTarget = "firing"
    firing_width: float = 0.5

    def __post_init__(self) -> None:
        for name in ("uniformity_weight", "ambiguity_weight"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"{name}={value!r}: allowed are finite numbers from 0")
        if self.uniformity_on not in ("routing", "softmax", "firing"):
            raise ConfigError(f"uniformity_on={self.uniformity_on!r}: allowed are 'routing', 'softmax' and 'firing'")
        if not 0 < self.firing_width < float("inf"):
            raise ConfigError(f"firing_width={self.firing_width!r}: allowed are positive numbers")


def uniformity_loss(mean_XE: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution against mean probabilities, averaged over heads and axes.

    Args:
        mean_XE: mean over tokens of distributions over E keys; X runs over heads and both axes.
    Returns:
        scalar, at least log(E); equal to it when every key is used alike.
    Source: arXiv 2412.04139, eq. 16, on token-averaged probabilities.
    """
    return -mean_XE.clamp(min=_MEAN_FLOOR).log().mean()


def ambiguity_loss(mean_max_X: Tensor) -> Tensor:
    """One minus the mean row maximum of the routing probabilities, averaged over heads and axes.

    Args:
        mean_max_X: mean over tokens of each head's largest probability; X runs over heads and both axes.
    Source: arXiv 2412.04139, eq. 17.
    """
    return 1 - mean_max_X.mean()


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


class RouterSums(NamedTuple):
    """Means over the tokens of a batch, from which a router's losses and metrics follow; differentiable but for counts.

    mean_2HE: mean routing probability of each axis, head and key.
    mean_max_2H: mean of each head's largest probability.
    share_2HE: mean of what the uniformity loss is taken on, not normalised; None where that is the routing itself.
    fired_2HE: int64, number of tokens at which each key was active.
    tokens: int64 scalar, tokens that count.
    """

    mean_2HE: Tensor
    mean_max_2H: Tensor
    share_2HE: Tensor | None
    fired_2HE: Tensor
    tokens: Tensor


class RouterLosses(NamedTuple):
    """What a router's forward is needed for after the layers: differentiable scalars, and metrics."""

    uniformity: Tensor
    ambiguity: Tensor
    metrics: RouterMetrics


def router_losses(
    routers: Sequence[RouterSums], ranks: GlobalBatch | Literal[False] | None = None
) -> tuple[RouterLosses, ...]:
    """Losses and metrics of routers.

    Args:
        routers: what the routers saw, in their order.
        ranks: takes the means over the batches of all ranks, by one all-reduce for all routers; None or False for
            this batch.
    """
    if ranks and routers:
        routers = [RouterSums(*sums) for sums in ranks.means(routers)]
    return tuple(losses_of(sums) for sums in routers)


def losses_of(sums: RouterSums) -> RouterLosses:
    """Losses and metrics of one router, of what it saw of this batch."""
    _, num_heads, _ = sums.mean_2HE.shape
    paper_uniformity = uniformity_loss(sums.mean_2HE)
    uniformity, ambiguity = paper_uniformity, ambiguity_loss(sums.mean_max_2H)
    if sums.share_2HE is not None:
        uniformity = uniformity_loss(sums.share_2HE / sums.share_2HE.sum(-1, keepdim=True).clamp(min=1e-9))
    active_per_head = sums.fired_2HE.sum() / (2 * num_heads * sums.tokens.clamp(min=1))
    metrics = RouterMetrics(paper_uniformity.detach(), ambiguity.detach(), active_per_head, sums.fired_2HE)
    return RouterLosses(uniformity, ambiguity, metrics)


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor, num_items: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in float32 of logits against labels already shifted; -100 is ignored.

    Args:
        logits_BTV: any floating dtype.
        labels_BT: int64.
        num_items: divisor of the sum; None for the number of labels that are not ignored.
    Returns:
        scalar; 0 with zero gradient when every label is ignored.
    """
    logits_NV, labels_N = logits_BTV.flatten(0, 1).float(), labels_BT.flatten()
    total = F.cross_entropy(logits_NV, labels_N, ignore_index=_IGNORED, reduction="sum")
    return total / _divisor(labels_N, num_items)


def projects_in_pieces(states_BTD: Tensor, lm_head: nn.Module) -> bool:
    """Whether `projected_loss` takes these: plain float32 on the CPU, and a torch that has the operator."""
    if not hasattr(F, "linear_cross_entropy") or type(lm_head) is not nn.Linear or lm_head.bias is not None:
        return False
    if torch.compiler.is_compiling() or is_watched(lm_head):
        return False
    tensors = (states_BTD, lm_head.weight)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 or t.numel() == 0 for t in tensors):
        return False
    return type(lm_head.weight) is nn.Parameter and not torch.is_autocast_enabled("cpu")


def projected_loss(
    states_BTD: Tensor, weight_VD: Tensor, labels_BT: Tensor, num_items: int | Tensor | None = None
) -> Tensor:
    """`next_token_loss` of the logits states @ weight.T, made and used a piece of the tokens at a time.

    The gradient is taken along with the loss, so there is one backward pass at most.

    Args:
        states_BTD, weight_VD: see `projects_in_pieces`.
        labels_BT, num_items: see `next_token_loss`.
    """
    states_ND, labels_N = states_BTD.flatten(0, 1), labels_BT.flatten()
    total = F.linear_cross_entropy(
        states_ND, weight_VD, labels_N, ignore_index=_IGNORED, reduction="sum", options=nn.LinearCrossEntropyOptions()
    )
    return total / _divisor(labels_N, num_items)


def _divisor(labels_N: Tensor, num_items: int | Tensor | None) -> int | Tensor:
    return (labels_N != _IGNORED).sum().clamp(min=1) if num_items is None else num_items


def loss_fields(
    lm_loss: Tensor,
    routers: Sequence[RouterLosses],
    router_loss: RouterLoss | None,
    labels_BT: Tensor | None = None,
    num_items: int | Tensor | None = None,
) -> dict[str, Tensor | tuple[RouterMetrics, ...]]:
    """The loss fields of a model's output; auxiliary losses are averaged over routers, and absent without any.

    Args:
        lm_loss, routers, router_loss: what the fields are made of.
        labels_BT: int64, already shifted; only read with `num_items`. None where the auxiliary losses are those of all
            ranks, which enter `loss` whole.
        num_items: labels of a whole accumulated step, of which this batch is a part. The auxiliary losses then enter
            `loss` by this batch's share of the labels, so that the parts of a step sum to a mean over its tokens.
    """
    if not routers:
        return {"loss": lm_loss, "lm_loss": lm_loss, "router_metrics": ()}
    uniformity = torch.stack([router.uniformity for router in routers]).mean()
    ambiguity = torch.stack([router.ambiguity for router in routers]).mean()
    loss = lm_loss
    if router_loss is not None:
        share: Tensor | float = 1.0
        if num_items is not None and labels_BT is not None:
            share = (labels_BT != _IGNORED).sum() / num_items
        loss = lm_loss + router_loss.uniformity_weight * share * uniformity
        loss = loss + router_loss.ambiguity_weight * share * ambiguity
    return {
        "loss": loss,
        "lm_loss": lm_loss,
        "uniformity_loss": uniformity,
        "ambiguity_loss": ambiguity,
        "router_metrics": tuple(router.metrics for router in routers),
    }
