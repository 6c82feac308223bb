"""One expert layer with fixed weights, and its formulas in plain torch as the reference for every kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from monet.doctor.findings import Fault
from monet.doctor.tiny import values
from monet.kernels.activations import RELU2 as _RELU2
from monet.kernels.activations import by_number
from monet.kernels.decode.op import active_horizontal, active_vertical
from monet.kernels.hde.op import horizontal_experts
from monet.kernels.masked import Keep
from monet.kernels.vde.op import vertical_experts

# rms(error) / rms(reference): allows another order of summation, and in bfloat16 one rounding at each step.
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
E, H, D, WIDTH = 8, 2, 48, 16  # WIDTH: hidden units of an expert in both halves together
_THRESHOLD = 0.3
RELU2 = by_number(_RELU2)


@dataclass
class LayerCase:
    """Weights, states and routing of T tokens.

    Args:
        form: "horizontal" or "vertical".
        T: number of tokens.
        device, dtype: for all tensors except the routing probabilities, which are float32 unless the dtype is float64.
    """

    form: str
    T: int
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        half = self.form == "vertical"
        P = E * WIDTH // (2 if half else 1)
        self.x_TD = self._some("x", self.T, D)
        self.first = [(self._some(f"u{n}", P, D), self._some(f"u{n} bias", P)) for n in range(2 if half else 1)]
        columns = D // 2 if half else D
        self.projections = [self._some(f"v{n}", columns, P) for n in range(4 if half else 1)]
        self.biases = [self._some(f"b{n}", E, columns) for n in range(2 if half else 1)]
        gate_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        z_2THE = values("z", (2, self.T, H, E)).double() * 3
        g_2THE = softmax(z_2THE, torch.full((H,), _THRESHOLD, dtype=torch.float64))
        self.g1_THE, self.g2_THE = g_2THE.to(self.device, gate_dtype)

    def _some(self, name: str, *shape: int) -> Tensor:
        return values(name, shape).to(self.device, self.dtype)

    def keeps(self) -> dict[str, Keep | None]:
        """No mask, one mask for all tokens, and one mask for each token, with some tokens exempt."""
        hard_2EE = values("keep", (2, E, E)).to(self.device) > 0
        each_T = torch.arange(self.T, device=self.device) % 3 - 1
        return {"no mask": None, "a mask": Keep(hard_2EE[:1]), "a mask a token": Keep(hard_2EE, each_T)}

    def pre_activations(self) -> list[Tensor]:
        """Pre-activations of the first linears, (T, E, M) each."""
        return [torch.nn.functional.linear(self.x_TD, w, bias).unflatten(-1, (E, -1)) for w, bias in self.first]

    def dense(self, hidden: list[Tensor], keep: Keep | None) -> Tensor:
        """The layer from its pre-activations, by the op that reads all keys."""
        g1, g2 = self.g1_THE, self.g2_THE
        if self.form == "horizontal":
            return horizontal_experts(hidden[0], g1, g2, self.projections[0], self.biases[0], RELU2, keep)
        (v11, v12, v21, v22), (b1, b2) = self.projections, self.biases
        return vertical_experts(hidden[0], hidden[1], g1, g2, (v11, v12, v21, v22), (b1, b2), RELU2, keep)

    def active(self, keep: Keep | None) -> Tensor:
        """The layer by the op that reads only active keys."""
        x_TD, g1, g2 = self.x_TD, self.g1_THE, self.g2_THE
        rows = [projection.t() for projection in self.projections]
        if self.form == "horizontal":
            (u_PD, u_P) = self.first[0]
            return active_horizontal(x_TD, g1, g2, u_PD, u_P, rows[0], self.biases[0], RELU2, keep)
        (v11, v12, v21, v22), (b1, b2) = rows, self.biases
        first = (*self.first[0], *self.first[1])
        return active_vertical(x_TD, g1, g2, first, (v11, v12, v21, v22), (b1, b2), RELU2, keep)

    def doubles(self) -> LayerCase:
        """The same case in float64 on the CPU, with this case's rounded numbers."""
        other = LayerCase(self.form, self.T, torch.device("cpu"), torch.float64)
        other.x_TD, other.g1_THE, other.g2_THE = (
            x.detach().cpu().double() for x in (self.x_TD, self.g1_THE, self.g2_THE)
        )
        other.first = [(w.detach().cpu().double(), bias.detach().cpu().double()) for w, bias in self.first]
        other.projections = [w.detach().cpu().double() for w in self.projections]
        other.biases = [w.detach().cpu().double() for w in self.biases]
        return other

    def formula(self, hidden: list[Tensor], keep: Keep | None) -> Tensor:
        """The layer from its pre-activations, as sums over all pairs of keys (arXiv 2412.04139, eq. 10-29)."""
        w_TEE = torch.einsum("thi,thj->tij", self.g1_THE, self.g2_THE)
        if keep is not None:
            w_TEE = w_TEE * _keep_of_tokens(keep, self.T).to(w_TEE)
        activated = [p_TEM.relu().square() for p_TEM in hidden]
        outs = [projection.unflatten(1, (E, -1)) for projection in self.projections]
        if self.form == "horizontal":
            return torch.einsum("tij,tim,djm->td", w_TEE, activated[0], outs[0]) + torch.einsum(
                "tij,jd->td", w_TEE, self.biases[0]
            )
        (a1_TEM, a2_TEM), (v11, v12, v21, v22), (b1, b2) = activated, outs, self.biases
        left = torch.einsum("tij,tim,dim->td", w_TEE, a1_TEM, v11) + torch.einsum("tij,tjm,dim->td", w_TEE, a2_TEM, v12)
        right = torch.einsum("tij,tim,djm->td", w_TEE, a1_TEM, v21) + torch.einsum(
            "tij,tjm,djm->td", w_TEE, a2_TEM, v22
        )
        left, right = left + torch.einsum("tij,id->td", w_TEE, b1), right + torch.einsum("tij,jd->td", w_TEE, b2)
        return torch.cat([left, right], -1)


def softmax(z_THE: Tensor, threshold_H: Tensor) -> Tensor:
    """Softmax over the keys that reach the smaller of the head's threshold and the row's maximum."""
    bound = torch.minimum(z_THE.amax(-1, keepdim=True), threshold_H[:, None])
    return torch.where(z_THE >= bound, z_THE, -math.inf).softmax(-1)


def _keep_of_tokens(keep: Keep, T: int) -> Tensor:
    """(T, E, E): the keep-weights for each token; index -1 keeps all experts."""
    weights_SEE = keep.weights_SEE.cpu().double()
    if keep.index_T is None:
        return weights_SEE.expand(T, -1, -1)
    return torch.cat([weights_SEE, torch.ones(1, E, E, dtype=torch.float64)])[keep.index_T.cpu()]


def compare(what: str, got: Tensor, wanted: Tensor, dtype: torch.dtype | None = None) -> float:
    """rms(got - wanted) / rms(wanted).

    Args:
        what: name of the compared quantity, for the fault's text.
        got, wanted: result and reference.
        dtype: dtype that sets the allowed error; None uses the dtype of `got`.
    Raises:
        Fault: the error is larger than the dtype allows, or not finite.
    """
    allowed = ALLOWED[dtype or got.dtype]
    difference = got.detach().cpu().double() - wanted.detach().double()
    error = float(difference.square().mean().sqrt() / wanted.detach().square().mean().sqrt().double())
    if not error <= allowed:
        raise Fault(f"{what}: error {error:.1e} of the result, allowed {allowed:.0e}")
    return error
