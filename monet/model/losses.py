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
from monet.model.ranks import GlobalBatch

# Floor of a mean before its logarithm: a key that no token reaches keeps a finite loss and gradient.
_MEAN_FLOOR = 1e-9
_IGNORED = -100

UniformityTarget = Literal["routing", "softmax", "firing"]


@dataclass(frozen=True)
class RouterLoss:
    """How the two auxiliary losses enter the training loss. They do not change inference.

    The defaults keep keys from dying; the loss in the paper is RouterLoss(1e-3, 1e-3, "routing").

    Attributes:
        uniformity_weight: factor of the uniformity loss (lambda in the paper; 1e-3 there).
        ambiguity_weight: factor of the ambiguity loss (lambda in the paper; 1e-3 there).
        uniformity_on: the quantity that should be uniform over the keys of a head. "routing": the mean routing
            probability, as in the paper; it gives no gradient to a key that never passes the threshold. "softmax": the
            mean of the softmax before thresholding. "firing": the mean of a smooth step at the threshold, which pulls
            a key that never fires towards the threshold, however far below the threshold it is.
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
                raise ConfigError(f"{name}={value!r}: must be a finite number of at least 0")
        if self.uniformity_on not in ("routing", "softmax", "firing"):
            raise ConfigError(f"uniformity_on={self.uniformity_on!r}: must be 'routing', 'softmax' or 'firing'")
        if not 0 < self.firing_width < float("inf"):
            raise ConfigError(f"firing_width={self.firing_width!r}: must be a positive number")


def uniformity_loss(mean_XE: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution relative to mean probabilities, averaged over heads and axes.

    Args:
        mean_XE: mean over tokens of distributions over E keys; X counts heads and both axes.
    Returns:
        scalar, at least log(E); equal to log(E) if every key is used equally.
    Source: arXiv 2412.04139, eq. 16, on token-averaged probabilities.
    """
    return -mean_XE.clamp(min=_MEAN_FLOOR).log().mean()


def ambiguity_loss(mean_max_X: Tensor) -> Tensor:
    """One minus the mean row maximum of the routing probabilities, averaged over heads and axes.

    Args:
        mean_max_X: mean over tokens of each head's largest probability; X counts heads and both axes.
    Source: arXiv 2412.04139, eq. 17.
    """
    return 1 - mean_max_X.mean()


class RouterMetrics(NamedTuple):
    """Metrics of a router on a batch, detached from the graph; padded tokens are not counted.

    uniformity, ambiguity: scalars, the paper's losses.
    active_per_head: scalar, mean number of active keys per token, axis and head.
    fired_2HE: int64, the number of tokens at which each key was active, for each axis and head.
    """

    uniformity: Tensor
    ambiguity: Tensor
    active_per_head: Tensor
    fired_2HE: Tensor


class RouterSums(NamedTuple):
    """Means over the tokens of a batch, from which a router's losses and metrics follow. Counts have no gradient.

    mean_2HE: mean routing probability of each axis, head and key.
    mean_max_2H: mean of each head's largest probability.
    share_2HE: mean of the quantity in the uniformity loss, not normalised; None if that is the routing itself.
    fired_2HE: int64, number of tokens at which each key was active.
    tokens: int64 scalar, number of tokens that count.
    """

    mean_2HE: Tensor
    mean_max_2H: Tensor
    share_2HE: Tensor | None
    fired_2HE: Tensor
    tokens: Tensor


class RouterLosses(NamedTuple):
    """The results of a router that are used after the layers: differentiable scalars, and metrics."""

    uniformity: Tensor
    ambiguity: Tensor
    metrics: RouterMetrics


def router_losses(
    routers: Sequence[RouterSums], ranks: GlobalBatch | Literal[False] | None = None
) -> tuple[RouterLosses, ...]:
    """Losses and metrics of routers.

    Args:
        routers: sums of the routers, in their order.
        ranks: averages over the batches of all ranks, by one all-reduce for all routers; None or False uses only this
            batch.
    """
    if ranks and routers:
        routers = [RouterSums(*sums) for sums in ranks.means(routers)]
    return tuple(losses_of(sums) for sums in routers)


def losses_of(sums: RouterSums) -> RouterLosses:
    """Losses and metrics of one router, from its sums over this batch."""
    _, num_heads, _ = sums.mean_2HE.shape
    paper_uniformity = uniformity_loss(sums.mean_2HE)
    uniformity, ambiguity = paper_uniformity, ambiguity_loss(sums.mean_max_2H)
    if sums.share_2HE is not None:
        uniformity = uniformity_loss(sums.share_2HE / sums.share_2HE.sum(-1, keepdim=True).clamp(min=1e-9))
    active_per_head = sums.fired_2HE.sum() / (2 * num_heads * sums.tokens.clamp(min=1))
    metrics = RouterMetrics(paper_uniformity.detach(), ambiguity.detach(), active_per_head, sums.fired_2HE)
    return RouterLosses(uniformity, ambiguity, metrics)


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor, num_items: int | Tensor | None = None) -> Tensor:
    """Cross-entropy in float32 of logits and labels that are already shifted; -100 is ignored.

    Args:
        logits_BTV: any floating dtype.
        labels_BT: int64.
        num_items: divisor of the sum; None uses the number of labels that are not ignored.
    Returns:
        scalar; 0 with zero gradient if all labels are ignored.
    """
    logits_NV, labels_N = logits_BTV.flatten(0, 1).float(), labels_BT.flatten()
    total = F.cross_entropy(logits_NV, labels_N, ignore_index=_IGNORED, reduction="sum")
    return total / _divisor(labels_N, num_items)


def projects_in_pieces(states_BTD: Tensor, lm_head: nn.Module) -> bool:
    """Whether `projected_loss` supports these: plain float32 on the CPU, and a torch that has the operator."""
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
    """`next_token_loss` of the logits states @ weight.T, computed for a part of the tokens at a time.

    The gradient is computed together with the loss, so there is at most one backward pass.

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


def with_auxiliary(
    loss: Tensor, uniformity: Tensor, ambiguity: Tensor, router_loss: RouterLoss, share: Tensor | float = 1.0
) -> Tensor:
    """A loss and the weighted auxiliary losses, which count by `share`."""
    loss = loss + router_loss.uniformity_weight * share * uniformity
    return loss + router_loss.ambiguity_weight * share * ambiguity


def loss_fields(
    lm_loss: Tensor,
    routers: Sequence[RouterLosses],
    router_loss: RouterLoss | None,
    labels_BT: Tensor | None = None,
    num_items: int | Tensor | None = None,
) -> dict[str, Tensor | tuple[RouterMetrics, ...]]:
    """The loss fields of a model's output; auxiliary losses are averaged over routers, and missing without routers.

    Args:
        lm_loss, routers, router_loss: what the fields are computed from.
        labels_BT: int64, already shifted; only read if `num_items` is given. None if the auxiliary losses are those of
            all ranks; `loss` then includes them in full.
        num_items: number of labels of a whole accumulated step, of which this batch is a part. The auxiliary losses
            then count in `loss` by this batch's share of the labels, so that the parts of a step sum to a mean over
            its tokens.
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
        loss = with_auxiliary(lm_loss, uniformity, ambiguity, router_loss, share)
    return {
        "loss": loss,
        "lm_loss": lm_loss,
        "uniformity_loss": uniformity,
        "ambiguity_loss": ambiguity,
        "router_metrics": tuple(router.metrics for router in routers),
    }
