"""Baselines of our layer: the same formulas written with einsums, and a dense SwiGLU.

The einsum modules are a direct translation of the paper's formulas (arXiv 2412.04139, eq. 10-29). They apply BatchNorm
to a transposed float32 copy of the logits, and `where` and softmax to all keys. They contract the hidden units operand
by operand from left to right, which is the cheap order, through a (B, T, H, M) array. Every layer casts the gates to
its dtype. Parameter names are the released ones, so our modules' state dicts load.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from monet import MonetConfig

INACTIVE = -1e10


class EinsumRouter(nn.Module):
    """(B, T, D) -> g1_BTHE, g2_BTHE, float32."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        self.num_heads, self.num_keys = config.moe_heads, config.moe_experts
        self.quantile = NormalDist().inv_cdf(1 - config.moe_topk / config.moe_experts)
        self.w1 = nn.Linear(config.hidden_size, self.num_heads * self.num_keys, bias=False)
        self.w2 = nn.Linear(config.hidden_size, self.num_heads * self.num_keys, bias=False)
        self.norm1 = nn.BatchNorm1d(self.num_heads, affine=False)
        self.norm2 = nn.BatchNorm1d(self.num_heads, affine=False)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return self._axis(self.w1(x_BTD), self.norm1), self._axis(self.w2(x_BTD), self.norm2)

    def _axis(self, z_BTP: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        z_BTHE = z_BTP.unflatten(-1, (self.num_heads, self.num_keys)).float()
        B, T, H, E = z_BTHE.shape
        n_BTHE = norm(z_BTHE.transpose(2, 3).reshape(B * T * E, H)).view(B, T, E, H).transpose(2, 3).contiguous()
        bound_BTH1 = n_BTHE.amax(dim=-1, keepdim=True).clamp(max=self.quantile)
        return torch.where(n_BTHE >= bound_BTH1, z_BTHE, INACTIVE).softmax(dim=-1)


class EinsumHorizontal(nn.Module):
    """Experts (i, j): x -> V_j act(U_i x + u_i) + b_j."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        D, E, M = config.hidden_size, config.moe_experts, config.moe_dim
        self.num_keys, self.act = E, ACT2FN[config.hidden_act]
        self.u, self.v = nn.Linear(D, E * M), nn.Linear(E * M, D, bias=False)
        self.b = nn.Parameter(torch.zeros(E, D))

    def forward(self, x_BTD: Tensor, g1_BTHE: Tensor, g2_BTHE: Tensor) -> Tensor:
        g1_BTHE, g2_BTHE = g1_BTHE.type_as(x_BTD), g2_BTHE.type_as(x_BTD)
        a_BTEM = self.act(self.u(x_BTD).unflatten(-1, (self.num_keys, -1)))
        y_BTEM = torch.einsum("btim,bthi,bthj->btjm", a_BTEM, g1_BTHE, g2_BTHE)
        return self.v(y_BTEM.flatten(-2)) + torch.einsum("bthj,jd->btd", g2_BTHE, self.b)


class EinsumVertical(nn.Module):
    """Experts (i, j) of two halves: hidden [a1_i; a2_j], output columns [left_i; right_j]."""

    def __init__(self, config: MonetConfig) -> None:
        super().__init__()
        D, E, P = config.hidden_size, config.moe_experts, config.moe_experts * config.moe_dim // 2
        self.num_keys, self.act = E, ACT2FN[config.hidden_act]
        self.u1, self.u2 = nn.Linear(D, P), nn.Linear(D, P)
        self.v11, self.v12 = nn.Linear(P, D // 2, bias=False), nn.Linear(P, D // 2, bias=False)
        self.v21, self.v22 = nn.Linear(P, D // 2, bias=False), nn.Linear(P, D // 2, bias=False)
        self.b1, self.b2 = nn.Parameter(torch.zeros(E, D // 2)), nn.Parameter(torch.zeros(E, D // 2))

    def forward(self, x_BTD: Tensor, g1_BTHE: Tensor, g2_BTHE: Tensor) -> Tensor:
        g1_BTHE, g2_BTHE = g1_BTHE.type_as(x_BTD), g2_BTHE.type_as(x_BTD)
        a1_BTEM = self.act(self.u1(x_BTD).unflatten(-1, (self.num_keys, -1)))
        a2_BTEM = self.act(self.u2(x_BTD).unflatten(-1, (self.num_keys, -1)))
        y11_BTEM = torch.einsum("btim,bthi->btim", a1_BTEM, g1_BTHE)
        y12_BTEM = torch.einsum("btjm,bthj,bthi->btim", a2_BTEM, g2_BTHE, g1_BTHE)
        y21_BTEM = torch.einsum("btim,bthi,bthj->btjm", a1_BTEM, g1_BTHE, g2_BTHE)
        y22_BTEM = torch.einsum("btjm,bthj->btjm", a2_BTEM, g2_BTHE)
        left_BTD = self.v11(y11_BTEM.flatten(-2)) + self.v12(y12_BTEM.flatten(-2))
        right_BTD = self.v21(y21_BTEM.flatten(-2)) + self.v22(y22_BTEM.flatten(-2))
        left_BTD = left_BTD + torch.einsum("bthi,id->btd", g1_BTHE, self.b1.type_as(x_BTD))
        right_BTD = right_BTD + torch.einsum("bthj,jd->btd", g2_BTHE, self.b2.type_as(x_BTD))
        return torch.cat([left_BTD, right_BTD], dim=-1)


class DenseSwiGLU(nn.Module):
    """Llama's MLP. At width 5632 it has as many multiply-adds as an expert layer at 1.4B (34.6 M per token)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x_BTD)) * self.up(x_BTD))
