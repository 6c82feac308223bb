"""Monet's formulas in plain torch, float64, expert by expert, from a state dict; calls no Monet code.

Source: arXiv 2412.04139, section 3 and eq. 10-29; attention, rotary embedding and norms as in LLaMA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor


def logits(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    form: str,
    ids_BT: Tensor,
    removed: Mapping[int, Sequence[int]] | None = None,
    margins: list[float] | None = None,
) -> Tensor:
    """(B, T, V) float64 logits of a model in evaluation mode.

    Args:
        state: weights under the released names.
        config: the keys of config.json; rms_norm_eps defaults to 1e-5 and rope_theta to 10000.
        form: "horizontal" or "vertical".
        ids_BT: token ids.
        removed: routing group -> ids i*E + j of the experts whose contribution is omitted.
        margins: receives, for each router and side, the smallest distance of a normalised logit from its threshold.
    """
    weights = {name.removeprefix("model."): tensor.double() for name, tensor in state.items()}
    x_BTD = weights["embed_tokens.weight"][ids_BT]
    eps, E = config.get("rms_norm_eps", 1e-5), config["moe_experts"]
    g1_BTHE = g2_BTHE = x_BTD
    for n in range(config["num_hidden_layers"]):
        layer = {name.removeprefix(f"layers.{n}."): w for name, w in weights.items() if name.startswith(f"layers.{n}.")}
        group, owns_router = divmod(n, config["moe_groups"])
        x_BTD = x_BTD + _attention(_norm(x_BTD, layer["input_layernorm.weight"], eps), layer, config)
        h_BTD = _norm(x_BTD, layer["post_attention_layernorm.weight"], eps)
        if owns_router == 0:
            g1_BTHE, g2_BTHE = (_routing(h_BTD, layer, side, config, margins) for side in (1, 2))
        out_BTD = torch.zeros_like(x_BTD)
        for i in range(E):
            for j in range(E):
                if i * E + j not in (removed or {}).get(group, ()):
                    w_BT1 = (g1_BTHE[..., i] * g2_BTHE[..., j]).sum(-1, keepdim=True)
                    out_BTD = out_BTD + w_BT1 * _expert(h_BTD, layer, form, i, j, E)
        x_BTD = x_BTD + out_BTD
    return _norm(x_BTD, weights["norm.weight"], eps) @ weights["lm_head.weight"].T


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def _attention(x_BTD: Tensor, layer: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    heads = config["num_attention_heads"]
    width = config["hidden_size"] // heads
    T = x_BTD.shape[1]

    def split(name: str) -> Tensor:
        return (x_BTD @ layer[f"self_attn.{name}.weight"].T).unflatten(-1, (heads, width)).transpose(1, 2)

    angle = torch.arange(T)[:, None] * config.get("rope_theta", 10000.0) ** (
        -torch.arange(0, width, 2).double() / width
    )

    def turn(x: Tensor) -> Tensor:
        """Turn the pairs (n, n + width/2) by the position's angles."""
        real, imaginary = x.chunk(2, -1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)

    scores = turn(split("q_proj")) @ turn(split("k_proj")).transpose(-1, -2) / math.sqrt(width)
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ split("v_proj")).transpose(1, 2).flatten(2) @ layer["self_attn.o_proj.weight"].T


def _routing(
    x_BTD: Tensor, layer: Mapping[str, Tensor], side: int, config: Mapping[str, Any], margins: list[float] | None
) -> Tensor:
    z_BTHE = (x_BTD @ layer[f"router.w{side}.weight"].T).unflatten(-1, (config["moe_heads"], config["moe_experts"]))
    mean_H1 = layer[f"router.norm{side}.running_mean"][:, None]
    n_BTHE = (z_BTHE - mean_H1) / (layer[f"router.norm{side}.running_var"][:, None] + 1e-5).sqrt()
    quantile = NormalDist().inv_cdf(1 - config["moe_topk"] / config["moe_experts"])
    if margins is not None:
        margins.append((n_BTHE - quantile).abs().min().item())
    bound_BTH1 = n_BTHE.amax(-1, keepdim=True).clamp(max=quantile)
    return torch.where(n_BTHE >= bound_BTH1, z_BTHE, -torch.inf).softmax(-1)


def _expert(x_BTD: Tensor, layer: Mapping[str, Tensor], form: str, i: int, j: int, E: int) -> Tensor:
    def hidden(name: str, key: int) -> Tensor:
        rows, bias = (layer[f"moe.{name}.{part}"].unflatten(0, (E, -1))[key] for part in ("weight", "bias"))
        return (x_BTD @ rows.T + bias).relu().square()

    def out(name: str, key: int, a: Tensor) -> Tensor:
        return a @ layer[f"moe.{name}.weight"].unflatten(1, (E, -1))[:, key].T

    if form == "horizontal":
        return out("v", j, hidden("u", i)) + layer["moe.b"][j]
    a1, a2 = hidden("u1", i), hidden("u2", j)
    left = out("v11", i, a1) + out("v12", i, a2) + layer["moe.b1"][i]
    right = out("v21", j, a1) + out("v22", j, a2) + layer["moe.b2"][j]
    return torch.cat([left, right], -1)
