"""Which experts contributed to each token of a text, and what a mask changes, token by token.

The target at position t is the log-probability of token t + 1, in nats. Leave-one-out removes a unit everywhere in the
text. Gradient times activation is its first-order estimate for all experts at once: the derivative of the target by the
expert's keep-weight. It does not see that a change can move a key over a router's threshold. Dims: T tokens, X removed
units, P list entries, D model width, E keys, M hidden units of an expert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monet.errors import ConfigError
from monet.eval.attribution.statistics.pairs import ExpertLister
from monet.eval.core.intervention import Intervention
from monet.eval.core.loading import evaluating
from monet.eval.index.units import Unit
from monet.eval.inspection.networks import mask_of, monet_layers
from monet.masks.masked_model import find_body
from monet.model.experts import HorizontalExperts


@dataclass(frozen=True)
class Contributions:
    """Gradient times activation of every active expert, for some targets.

    Attributes:
        target_P: int64, position t of the target: the prediction of token t + 1.
        source_P: int64, position at which the expert is active; at most t.
        group_P: int64, routing group.
        expert_P: int64, expert id i*E + j.
        weight_P: float32, the expert's weight at the source, times what masks in the model keep of it.
        value_P: float32, contribution to the target, nats.
    """

    target_P: Tensor
    source_P: Tensor
    group_P: Tensor
    expert_P: Tensor
    weight_P: Tensor
    value_P: Tensor

    def by_expert(self, target: int) -> list[tuple[int, int, float]]:
        """Group, expert id and contribution to one target, summed over the sources; largest absolute values first."""
        chosen_P = self.target_P == target
        pair_P = torch.stack([self.group_P[chosen_P], self.expert_P[chosen_P]], dim=1)
        pair_K2, which_P = pair_P.unique(dim=0, return_inverse=True)
        value_K = torch.zeros(len(pair_K2)).index_add_(0, which_P, self.value_P[chosen_P])
        order_K = value_K.abs().argsort(descending=True, stable=True)
        return [(*pair_K2[k].tolist(), float(value_K[k])) for k in order_K.tolist()]


def gradient_contributions(model: Any, ids: Sequence[int], targets: Sequence[int] | None = None) -> Contributions:
    """Gradient times activation of every active expert at every token.

    Needs one forward pass, and one backward pass for each target.

    Args:
        model: a MonetForCausalLM; its weights are not changed and get no gradients.
        ids: token ids of the text, at least two.
        targets: positions t, each below len(ids) - 1; None takes all.

    Raises:
        ConfigError: the text is too short, or a target is out of range.
    """
    chosen = _targets(ids, targets)
    body = find_body(model)
    layers = [(n, layer) for group in range(body.config.num_routing_groups) for n, layer in monet_layers(model, group)]
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    gates: dict[int, tuple[Tensor, Tensor]] = {}
    was_training = model.training
    model.eval()
    try:
        with contextlib.ExitStack() as stack:
            for n, layer in layers:
                stack.callback(layer.moe.register_forward_hook(_keeps(n, inputs, outputs)).remove)
                if layer.router is not None:
                    stack.callback(layer.router.register_forward_hook(_keeps_gates(layer.routing_group, gates)).remove)
            ids_1T = torch.tensor([list(ids)], device=model.device)
            with torch.enable_grad():
                start_1TD = model.get_input_embeddings()(ids_1T).detach().requires_grad_()
                logits_TV = model(inputs_embeds=start_1TD, use_cache=False).logits[0].float()
                scores_T = _next_token_scores(logits_TV, ids_1T[0])
            masks = [mask for mask in (body.active_masks.stored, *body.active_masks.applied) if mask is not None]
            lists = {group: _active(*pair, [mask.keep_REE[group] for mask in masks]) for group, pair in gates.items()}
            columns: list[tuple[Tensor, ...]] = []
            for target in chosen:
                wanted = [outputs[n] for n, _ in layers]
                found = torch.autograd.grad(scores_T[target], wanted, retain_graph=True, allow_unused=True)
                for (n, layer), slope_1TD in zip(layers, found, strict=True):
                    if slope_1TD is not None:
                        active = lists[layer.routing_group]
                        columns.append(_layer_values(layer, target, active, inputs[n][0], slope_1TD[0]))
    finally:
        model.train(was_training)
    return _summed(columns, body.config.moe_experts**2)


def leave_one_out(model: Any, ids: Sequence[int], units: Sequence[Unit], batch_size: int = 8) -> Tensor:
    """The exact contribution of units to each prediction: the log-probability minus that without the unit.

    Args:
        model: a MonetForCausalLM.
        ids: token ids of the text, at least two.
        units: experts or halves; each is removed by itself, at all tokens.
        batch_size: units that are removed in one forward pass.

    Returns:
        float32 (X, T - 1) on the CPU, nats; column t is the prediction of token t + 1.

    Raises:
        ConfigError: the text is too short.
    """
    _targets(ids, None)
    ids_1T = torch.tensor([list(ids)], device=model.device)
    rows = []
    with evaluating(model):
        whole_T = _next_token_scores(model(ids_1T, use_cache=False).logits[0].float(), ids_1T[0])
        for start in range(0, len(units), batch_size):
            masks = [mask_of(model, [unit]) for unit in units[start : start + batch_size]]
            logits_BTV = model(ids_1T.expand(len(masks), -1), expert_mask=masks, use_cache=False).logits
            rows += [whole_T - _next_token_scores(logits_TV.float(), ids_1T[0]) for logits_TV in logits_BTV]
    return torch.stack(rows).cpu() if rows else torch.zeros(0, len(ids) - 1)


@dataclass(frozen=True)
class MaskEffect:
    """What an intervention changes in the predictions of a text.

    Attributes:
        ids: token ids of the text.
        before_T, after_T: float32 (T - 1,), log-probability of token t + 1 at position t, nats.
        divergence_T: float32 (T,), Kullback-Leibler divergence of the predictions, nats; 0 if nothing changed.
        top_before_TK, top_after_TK: int64 (T, count), most likely next tokens.
        likely_before_TK, likely_after_TK: float32, their probabilities.
    """

    ids: list[int]
    before_T: Tensor
    after_T: Tensor
    divergence_T: Tensor
    top_before_TK: Tensor
    top_after_TK: Tensor
    likely_before_TK: Tensor
    likely_after_TK: Tensor


def mask_effect(model: Any, ids: Sequence[int], mask: Intervention, count: int = 5) -> MaskEffect:
    """Compare the predictions of every token of a text with and without a mask.

    Args:
        model: a MonetForCausalLM.
        ids: token ids of the text, at least two.
        mask: an ExpertMask, or any other intervention.
        count: most likely tokens to name.

    Raises:
        ConfigError: the text is too short.
        CheckpointError: the mask was made for another model.
    """
    _targets(ids, None)
    ids_1T = torch.tensor([list(ids)], device=model.device)
    with evaluating(model):
        before_TV = F.log_softmax(model(ids_1T, use_cache=False).logits[0].float(), -1)
        with mask.applied_to(model):
            after_TV = F.log_softmax(model(ids_1T, use_cache=False).logits[0].float(), -1)
    divergence_T = (before_TV.exp() * (before_TV - after_TV)).sum(-1).clamp(min=0)
    tops = [scores_TV.exp().topk(min(count, scores_TV.shape[1]), dim=-1) for scores_TV in (before_TV, after_TV)]
    next_T1 = ids_1T[0, 1:, None]
    before_T, after_T = (scores_TV[:-1].gather(1, next_T1)[:, 0].cpu() for scores_TV in (before_TV, after_TV))
    return MaskEffect(
        list(ids), before_T, after_T, divergence_T.cpu(), tops[0].indices.cpu(), tops[1].indices.cpu(),
        tops[0].values.cpu(), tops[1].values.cpu(),
    )  # fmt: skip


def _targets(ids: Sequence[int], targets: Sequence[int] | None) -> list[int]:
    if len(ids) < 2:
        raise ConfigError(f"a text of {len(ids)} token has no prediction to explain; give at least two tokens")
    chosen = list(range(len(ids) - 1)) if targets is None else list(targets)
    for target in chosen:
        if not 0 <= target < len(ids) - 1:
            raise ConfigError(f"target {target}: a text of {len(ids)} tokens has the targets 0 to {len(ids) - 2}")
    return chosen


def _next_token_scores(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """(T - 1,) log-probability of each next token."""
    return F.log_softmax(logits_TV[:-1], -1).gather(1, ids_T[1:, None])[:, 0]


def _keeps(n: int, inputs: dict[int, Tensor], outputs: dict[int, Tensor]) -> Any:
    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        inputs[n], outputs[n] = args[0].detach(), output

    return hook


def _keeps_gates(group: int, gates: dict[int, tuple[Tensor, Tensor]]) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        gates[group] = (output.g1_BTHE.detach()[0].float(), output.g2_BTHE.detach()[0].float())

    return hook


def _active(g1_THE: Tensor, g2_THE: Tensor, keeps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Token, expert id and float32 weight of each active expert that masks keep."""
    lister = ExpertLister(g1_THE.shape[-1], g1_THE.device)
    lists = list(lister.lists(g1_THE, g2_THE))
    token_P, expert_P, weight_P = (torch.cat(column) for column in zip(*lists, strict=True))
    for keep_EE in keeps:
        weight_P = weight_P * keep_EE.flatten().to(weight_P)[expert_P]
    kept_P = weight_P.nonzero().view(-1)
    return token_P[kept_P], expert_P[kept_P], weight_P[kept_P].float()


def _layer_values(
    layer: Any, target: int, active: tuple[Tensor, Tensor, Tensor], x_TD: Tensor, slope_TD: Tensor
) -> tuple[Tensor, ...]:
    """Contributions of one layer's experts: weight times <output of the expert, derivative by the layer's output>."""
    earlier_P = (active[0] <= target).nonzero().view(-1)  # later tokens do not change the prediction
    token_P, expert_P, weight_P = (column_P.index_select(0, earlier_P) for column_P in active)
    experts = layer.moe
    E = experts.num_keys
    first_P, second_P = expert_P // E, expert_P % E
    with torch.no_grad():
        value_P = weight_P * _products(experts, x_TD, slope_TD, token_P, first_P, second_P).float()
    same_P = torch.full_like(token_P, target), token_P, torch.full_like(token_P, layer.routing_group)
    return tuple(column_P.cpu() for column_P in (*same_P, expert_P, weight_P, value_P))


def _products(experts: Any, x_TD: Tensor, slope_TD: Tensor, token_P: Tensor, i_P: Tensor, j_P: Tensor) -> Tensor:
    """<output of expert (i, j) for a token's input, the token's slope>, from hidden units and slopes by them."""
    E, act = experts.num_keys, experts.act_fn

    def by_key(rows_TP: Tensor) -> Tensor:
        return rows_TP.unflatten(-1, (E, -1))

    if isinstance(experts, HorizontalExperts):
        hidden_TEM = act(by_key(experts.u(x_TD)))
        slope_TEM = by_key(slope_TD @ experts.v.weight)
        return (hidden_TEM[token_P, i_P] * slope_TEM[token_P, j_P]).sum(-1) + (slope_TD @ experts.b.T)[token_P, j_P]
    left_TD, right_TD = slope_TD.chunk(2, dim=-1)
    x1_PM = act(by_key(experts.u1(x_TD)))[token_P, i_P]
    x2_PM = act(by_key(experts.u2(x_TD)))[token_P, j_P]
    s11_PM, s12_PM = (by_key(left_TD @ v.weight)[token_P, i_P] for v in (experts.v11, experts.v12))
    s21_PM, s22_PM = (by_key(right_TD @ v.weight)[token_P, j_P] for v in (experts.v21, experts.v22))
    biases_P = (left_TD @ experts.b1.T)[token_P, i_P] + (right_TD @ experts.b2.T)[token_P, j_P]
    return (x1_PM * (s11_PM + s21_PM) + x2_PM * (s12_PM + s22_PM)).sum(-1) + biases_P


def _summed(columns: list[tuple[Tensor, ...]], num_experts: int) -> Contributions:
    """Entries of the layers of a group are added up: one entry for each target, source, group and expert."""
    if not columns:
        none = torch.zeros(0, dtype=torch.int64)
        return Contributions(none, none, none, none, torch.zeros(0), torch.zeros(0))
    target_P, source_P, group_P, expert_P, weight_P, value_P = (
        torch.cat(column) for column in zip(*columns, strict=True)
    )
    place_P4 = torch.stack([target_P, source_P, group_P, expert_P], dim=1)
    place_K4, which_P = place_P4.unique(dim=0, return_inverse=True)
    value_K = torch.zeros(len(place_K4)).index_add_(0, which_P, value_P)
    weight_K = torch.zeros(len(place_K4))
    weight_K[which_P] = weight_P  # equal for all layers of the group
    target_K, source_K, group_K, expert_K = place_K4.unbind(1)
    return Contributions(target_K, source_K, group_K, expert_K, weight_K, value_K)
