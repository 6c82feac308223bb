"""Stage 1: several layers at once learn to produce their MLP's output from its input.

The loop knows only modules that map (T, D) to (T, D), so other stand-ins than Monet layers train on the same stream.
Layers that share no router do not affect each other: each has its own loss and its own gradient clipping.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from monet.convert.dense.precision import Arithmetic
from monet.convert.dense.stand_in import StandIn
from monet.convert.dense.stream import StateBatch, States
from monet.errors import ConfigError, NonFiniteError
from monet.kernels.routing.reference import normal_quantile
from monet.options import Options

_BETAS = (0.9, 0.98)
_POINTS = 200  # in a curve


@dataclass(frozen=True)
class LocalOptions(Options):
    """How the layers learn in stage 1.

    Args:
        tokens: tokens of stage 1; 0 keeps the start.
        learning_rate: largest rate of Adam.
        warmup_steps: steps until the largest rate.
        decay_from: share of the steps after which the rate falls linearly.
        final_rate: rate at the end, as a share of learning_rate.
        clip_norm: largest norm of a routing group's gradient.
        first_weight: weight in the loss of the first token of each window; its states differ from all others.
        topk_start: expected number of active keys per side and head at the start; null uses moe_topk throughout.
        topk_anneal: share of the steps in which it falls from topk_start to moe_topk.
    """

    tokens: int = 2_000_000
    learning_rate: float = 1.5e-3
    warmup_steps: int = 20
    decay_from: float = 0.3
    final_rate: float = 0.02
    clip_norm: float = 1.0
    first_weight: float = 0.02
    topk_start: int | None = None
    topk_anneal: float = 0.5

    def check(self, num_keys: int, topk: int) -> None:
        """Refuse impossible values.

        Raises:
            ConfigError: the message names the option, its value and the valid range.
        """
        for name in ("tokens", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 0")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name)} must be above 0")
        for name in ("decay_from", "final_rate", "topk_anneal", "first_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be from 0 to 1")
        if self.topk_start is not None and not topk <= self.topk_start < num_keys:
            raise ConfigError(
                f"topk_start {self.topk_start} must be at least moe_topk {topk} and below moe_experts {num_keys}"
            )

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        done = step / steps
        decay = 1 - (done - self.decay_from) / max(1 - self.decay_from, 1e-12)
        falling = 1.0 if done < self.decay_from else max(self.final_rate, decay)
        return self.learning_rate * min(1.0, (step + 1) / max(self.warmup_steps, 1)) * falling

    def quantile(self, step: int, steps: int, num_keys: int, topk: int) -> float:
        """The routers' threshold at a step, in standard deviations."""
        end = normal_quantile(topk, num_keys)
        if self.topk_start is None or self.topk_anneal == 0:
            return end
        left = max(0.0, 1 - step / (steps * self.topk_anneal))
        return end + left * (normal_quantile(self.topk_start, num_keys) - end)


@dataclass(frozen=True)
class Norms:
    """What errors are divided by.

    Attributes:
        variance: summed variance of a layer's outputs over the dimensions.
        first_power: mean squared norm of its outputs at first tokens.
    """

    variance: float
    first_power: float

    @classmethod
    def of(cls, states: Sequence[States], first: Sequence[Tensor]) -> Norms:
        """From batches of states and their marks of first tokens."""
        y_TD = torch.cat([one.y_TD for one in states]).float()
        first_T = torch.cat(list(first))
        variance = float(y_TD[~first_T].var(0).sum())
        return cls(variance, max(variance, float(y_TD[first_T].square().sum(1).mean())))


@dataclass
class Seconds:
    """Wall and processor seconds of each part of the loop."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - wall
            self.cpu[part] = self.cpu.get(part, 0.0) + time.process_time() - cpu


def squared_errors(student: Any, states: States, arithmetic: Arithmetic) -> Tensor:
    """The squared norm of a student's error at each token, float32, (T,)."""
    with arithmetic.autocast():
        out_TD = student(states.x_TD)
    return (out_TD.float() - states.y_TD.float()).square().sum(1)


class LocalTraining:
    """Students, their optimiser, and the curve of their errors.

    Args:
        students: the module of each layer, (T, D) -> (T, D), with float32 weights.
        groups: layers that share a router; their losses are summed, because their gradients meet in it.
        norms: what errors are divided by, for each layer.
        options: see `LocalOptions`.
        arithmetic: device and precision.
        steps: steps of the whole stage.
    Attributes:
        step: steps done.
        tokens: tokens read.
        start_fvu: held-out FVU before the first step, by layer.
        curve: points with `tokens` and the mean FVU of the steps since the point before, `fvu`, by layer.
    """

    def __init__(
        self,
        students: Mapping[int, nn.Module],
        groups: Sequence[Sequence[int]],
        norms: Mapping[int, Norms],
        options: LocalOptions,
        arithmetic: Arithmetic,
        steps: int,
    ) -> None:
        self.students, self.groups, self.norms = dict(students), [list(group) for group in groups], dict(norms)
        self.options, self.arithmetic, self.steps = options, arithmetic, steps
        for student in self.students.values():
            student.to(arithmetic.device).train()
        self._weights = {
            group[0]: [weight for layer in group for weight in self.students[layer].parameters()]
            for group in self.groups
        }
        everything = [weight for weights in self._weights.values() for weight in weights]
        self.optimizer = torch.optim.Adam(everything, lr=options.learning_rate, betas=_BETAS, fused=True)
        self.step = self.tokens = 0
        self.curve: list[dict[str, Any]] = []
        self.seconds = Seconds()
        self.start_fvu: dict[int, float] = {}
        self._sums: dict[int, float] = dict.fromkeys(self.students, 0.0)
        self._summed = 0

    def learn(self, batch: StateBatch) -> dict[int, float]:
        """One step on one batch; returns the FVU of each layer on it, before the update.

        Raises:
            NonFiniteError: a loss is NaN or infinite; the weights are those before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(self.step, self.steps)
        self._set_threshold()
        rest_T = (~batch.first_T).float()
        rest, first = rest_T.sum().clamp(min=1), batch.first_T.sum().clamp(min=1)
        fvu: dict[int, Tensor] = {}
        with self.seconds.of("stand-ins"):
            for group in self.groups:
                loss = torch.zeros((), device=rest_T.device)
                for layer in group:
                    norms = self.norms[layer]
                    error_T = squared_errors(self.students[layer], batch.states[layer], self.arithmetic)
                    main = (error_T * rest_T).sum() / rest / norms.variance
                    at_first = (error_T * batch.first_T).sum() / first / norms.first_power
                    loss = loss + main + self.options.first_weight * at_first
                    fvu[layer] = main.detach()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._weights[group[0]], self.options.clip_norm)
            found = {layer: float(value) for layer, value in fvu.items()}
        if bad := [layer for layer, value in found.items() if not value < float("inf")]:
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"stage 1, step {self.step + 1}: the loss of layer {bad[0]} is {found[bad[0]]}; lower --learning_rate "
                f"{self.options.learning_rate}, or use --precision float32"
            )
        with self.seconds.of("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens
        self._record(found)
        return found

    def _set_threshold(self) -> None:
        for student in self.students.values():
            if isinstance(student, StandIn) and student.router is not None:
                student.router.quantile = self.options.quantile(
                    self.step, self.steps, student.router.num_keys, student.experts.topk
                )

    def _record(self, found: Mapping[int, float]) -> None:
        for layer, value in found.items():
            self._sums[layer] += value
        self._summed += 1
        if self._summed == max(1, self.steps // _POINTS) or self.step == self.steps:
            means = {str(layer): total / self._summed for layer, total in self._sums.items()}
            self.curve.append({"tokens": self.tokens, "fvu": means})
            self._sums, self._summed = dict.fromkeys(self.students, 0.0), 0

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, for `load_state_dict`."""
        return {
            "students": {str(layer): dict(student.state_dict()) for layer, student in self.students.items()},
            "norms": {str(layer): vars(norms) for layer, norms in self.norms.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "curve": self.curve,
            "sums": {str(layer): value for layer, value in self._sums.items()},
            "summed": self._summed,
            "start_fvu": {str(layer): value for layer, value in self.start_fvu.items()},
            "seconds": {"wall": self.seconds.wall, "cpu": self.seconds.cpu},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state of the same students and options."""
        for layer, student in self.students.items():
            student.load_state_dict(state["students"][str(layer)])
        self.norms = {int(layer): Norms(**norms) for layer, norms in state["norms"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens, self.curve = state["step"], state["tokens"], list(state["curve"])
        self._sums = {int(layer): value for layer, value in state["sums"].items()}
        self._summed = state["summed"]
        self.start_fvu = {int(layer): value for layer, value in state["start_fvu"].items()}
        self.seconds = Seconds(dict(state["seconds"]["wall"]), dict(state["seconds"]["cpu"]))
