"""Measures a conversion on held-out text: errors and routing of the stand-ins, and the whole model's loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monet.convert.dense.local import squared_errors
from monet.convert.dense.precision import Arithmetic
from monet.convert.dense.stand_in import StandIn
from monet.convert.dense.stream import MlpStates, held_out_split
from monet.data.loading.datamodule import MonetDataModule
from monet.data.loading.loaders import ValidationPass
from monet.data.loading.windows import WindowDataset
from monet.errors import DataError

_ROWS = 512  # positions whose logits are in memory at a time


def held_out_windows(text: MonetDataModule, per_domain: int) -> ValidationPass:
    """Windows of the held-out split, spread evenly over each domain that fills a window.

    Raises:
        DataError: the data have no held-out split, or no domain of it fills a window.
    """
    split = held_out_split(text)
    tokens = {name: text.shards.stream(split, name).num_tokens for name in text.domains}
    long_enough = [name for name in text.domains if tokens[name] > text.seq_len]
    if not long_enough:
        raise DataError(f"{text.data_dir}: no domain of {split!r} has a window of seq_len {text.seq_len}; shorten it")
    windows = WindowDataset(text.shards, split, text.seq_len, long_enough, document_mask=text.document_mask)
    return ValidationPass(windows, text.batch_size, max_windows=per_domain)


def _batches(windows: ValidationPass) -> Iterator[dict[str, Tensor]]:
    with closing(iter(windows)) as found:  # pyright: ignore[reportArgumentType]
        yield from found


@dataclass(frozen=True)
class Activity:
    """How one router chose on held-out text.

    Attributes:
        keys: keys of each axis that some head ever used, (2,).
        keys_of_head: mean over heads and axes of the number of keys that a head ever used.
        pairs: pairs of keys, that is experts, that ever acted.
        active_keys: mean number of active keys per side and head.
        active_over_heads: mean number of keys of an axis that are active in some head.
        tokens: tokens read.
    """

    keys: tuple[int, int]
    keys_of_head: float
    pairs: int
    active_keys: float
    active_over_heads: float
    tokens: int


class _Counts:
    def __init__(self, num_heads: int, num_keys: int, device: torch.device) -> None:
        self.used_2HE = torch.zeros(2, num_heads, num_keys, dtype=torch.bool, device=device)
        self.pairs_EE = torch.zeros(num_keys, num_keys, dtype=torch.bool, device=device)
        self.active = self.over_heads = 0.0
        self.tokens = 0

    def add(self, g1_THE: Tensor, g2_THE: Tensor) -> None:
        on_2THE = torch.stack([g1_THE > 0, g2_THE > 0])
        self.used_2HE |= on_2THE.any(1)
        first, second = on_2THE.to(g1_THE.dtype).flatten(1, 2)
        self.pairs_EE |= (first.t() @ second) > 0
        self.active += float(on_2THE.sum(-1).float().mean(-1).sum()) / 2
        self.over_heads += float(on_2THE.any(2).sum(-1).float().sum()) / 2
        self.tokens += len(g1_THE)

    def result(self) -> Activity:
        first, second = self.used_2HE.any(1).sum(-1).tolist()
        return Activity(
            keys=(int(first), int(second)),
            keys_of_head=float(self.used_2HE.sum(-1).float().mean()),
            pairs=int(self.pairs_EE.sum()),
            active_keys=self.active / self.tokens,
            active_over_heads=self.over_heads / self.tokens,
            tokens=self.tokens,
        )


@dataclass(frozen=True)
class HeldOut:
    """Results of the stand-ins on held-out text.

    Attributes:
        fvu: fraction of variance unexplained of each layer, without first tokens.
        activity: choices of each router, by the layer that owns it; only for stand-ins with a router.
        tokens: tokens that count.
    """

    fvu: dict[int, float]
    activity: dict[int, Activity]
    tokens: int


@torch.no_grad()
def measure_students(
    students: Mapping[int, nn.Module], model: MlpStates, windows: ValidationPass, arithmetic: Arithmetic
) -> HeldOut:
    """Errors of the students, in evaluation mode, on the dense model's states.

    Args:
        students: by layer, in ascending order, so that the first layer of a routing group runs first.
        model: collects the dense model's states.
        windows: held-out windows.
        arithmetic: device and precision.
    """
    modules: dict[int, Any] = dict(students)
    modes = {layer: student.training for layer, student in students.items()}
    for student in modules.values():
        student.to(arithmetic.device).eval()
    error: dict[int, float] = dict.fromkeys(students, 0.0)
    power: dict[int, float] = dict.fromkeys(students, 0.0)
    sums: dict[int, Tensor] = {}
    counts: dict[int, _Counts] = {}
    tokens = 0
    for batch in _batches(windows):
        found = model(batch)
        rest_T = ~found.first_T
        tokens += int(rest_T.sum())
        for layer, student in modules.items():
            states = found.states[layer]
            error[layer] += float(squared_errors(student, states, arithmetic)[rest_T].double().sum())
            y_TD = states.y_TD[rest_T].double()
            power[layer] += float(y_TD.square().sum())
            sums[layer] = sums.get(layer, 0) + y_TD.sum(0)
            if isinstance(student, StandIn) and student.router is not None and student.routed is not None:
                gates = [gate[0] for gate in student.routed.gates]
                if layer not in counts:
                    _, heads, keys = gates[0].shape
                    counts[layer] = _Counts(heads, keys, gates[0].device)
                counts[layer].add(gates[0], gates[1])
    for layer, student in students.items():
        student.train(modes[layer])
    variance = {layer: power[layer] - float(sums[layer].square().sum()) / tokens for layer in students}
    return HeldOut(
        {layer: error[layer] / variance[layer] for layer in students},
        {layer: one.result() for layer, one in counts.items()},
        tokens,
    )


@dataclass(frozen=True)
class DomainLoss:
    """Next-token losses of one domain, nats per token, and the divergence KL(dense || converted) per token."""

    name: str
    tokens: int
    loss_dense: float
    loss: float
    kl: float


@torch.no_grad()
def measure_losses(
    dense: Any, converted: Any, windows: ValidationPass, domains: Sequence[str], arithmetic: Arithmetic
) -> list[DomainLoss]:
    """Losses of two models on the same held-out windows, by domain.

    The logits of a few hundred positions are in memory at a time.

    Args:
        dense, converted: language models with the same vocabulary; they are moved to the device and data type.
        windows: held-out windows; each batch has one domain.
        domains: names by index.
        arithmetic: device and data type.
    """
    models = [model.to(arithmetic.device, arithmetic.dtype).eval() for model in (dense, converted)]
    totals: dict[int, list[float]] = {}
    for batch in _batches(windows):
        windows_BT = batch["input_ids"].to(arithmetic.device)
        positions = batch.get("position_ids")
        positions_BT = None if positions is None else positions.to(arithmetic.device)
        states = [
            model.model(input_ids=windows_BT[:, :-1], position_ids=positions_BT, use_cache=False)
            .last_hidden_state.flatten(0, 1)
            for model in models
        ]  # fmt: skip
        labels_T = windows_BT[:, 1:].flatten()
        total = totals.setdefault(int(batch["domain"][0]), [0.0, 0.0, 0.0, 0.0])
        for start in range(0, len(labels_T), _ROWS):
            part = slice(start, start + _ROWS)
            log_dense_TV, log_TV = (
                F.log_softmax(model.lm_head(state_TD[part]).float(), -1)
                for model, state_TD in zip(models, states, strict=True)
            )
            total[0] += float(F.nll_loss(log_dense_TV, labels_T[part], reduction="sum"))
            total[1] += float(F.nll_loss(log_TV, labels_T[part], reduction="sum"))
            total[2] += float((log_dense_TV.exp() * (log_dense_TV - log_TV)).sum())
        total[3] += len(labels_T)
    return [
        DomainLoss(domains[index], int(tokens), loss_dense / tokens, loss / tokens, kl / tokens)
        for index, (loss_dense, loss, kl, tokens) in sorted(totals.items())
    ]
