"""Starts the stand-ins of stage 1 from the first windows of the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from monet.configuration_monet import MonetConfig
from monet.convert.dense.local import Norms
from monet.convert.dense.pieces import Heads, start_at_random, start_from_pieces
from monet.convert.dense.stand_in import StandIn, build_stand_ins
from monet.convert.dense.stream import MlpStates, StateStream

Init = Literal["pieces", "random"]

_SAMPLE_BYTES = 1 << 30  # of states in memory at a time; the dense model runs again for the other layers


def start_stand_ins(
    config: MonetConfig,
    groups: Sequence[Sequence[int]],
    stream: StateStream,
    *,
    init: Init,
    heads: Heads,
    sample_tokens: int,
    seed: int,
) -> tuple[dict[int, StandIn], dict[int, Norms]]:
    """Stand-ins with their start weights, and what the errors of each layer are divided by.

    The sample is the first text of the stream. Afterwards the stream is at the first window after the sample, so stage
    1 reads no window of the sample.

    Args:
        config: the hybrid's configuration.
        groups: layers that share a router.
        stream: at its start.
        init, heads: see `start_from_pieces` and `start_at_random`.
        sample_tokens: least size of the sample.
        seed: for random parts; each layer has its own generator.
    """
    students = build_stand_ins(config, [list(group) for group in groups])
    norms: dict[int, Norms] = {}
    for layer, sample in read_samples(stream, groups, sample_tokens, config.hidden_size):
        norms[layer] = sample.norms
        students[layer].standardise(sample.x_TD, sample.y_TD)
        generator = layer_generator(seed, layer)
        if init == "pieces":
            mlp = _on_cpu(stream.model, layer)
            start_from_pieces(students[layer], mlp, sample.x_TD, sample.y_TD, heads, generator)
        else:
            start_at_random(students[layer], sample.x_TD, sample.y_TD, generator)
        for group in groups:
            if layer == group[-1]:
                for one in group:
                    students[one].train()  # drops the sample's routing
    return students, norms


@dataclass(frozen=True)
class Sample:
    """Inputs and outputs of one layer's MLP on the first text.

    Attributes:
        norms: what the layer's errors are divided by.
        x_TD, y_TD: without first tokens, float32, on the CPU.
    """

    norms: Norms
    x_TD: Tensor
    y_TD: Tensor


def read_samples(
    stream: StateStream, groups: Sequence[Sequence[int]], sample_tokens: int, width: int
) -> Iterator[tuple[int, Sample]]:
    """Read the next text of the stream; yields each layer's sample in turn, with bounded memory.

    Args:
        stream: afterwards behind the sample.
        groups: layers whose samples are read together.
        sample_tokens: least size of the sample.
        width: size D of a state.
    """
    batches = -(-sample_tokens // stream.tokens_per_batch)
    begin = stream.state_dict()
    for part in _parts(groups, batches * stream.tokens_per_batch * width):
        layers = [layer for group in part for layer in group]
        stream.load_state_dict(begin)
        with closing(stream.batches(layers)) as found:
            sample = [next(found) for _ in range(batches)]
        first = [batch.first_T for batch in sample]
        rest_T = ~torch.cat(first)
        for layer in layers:
            states = [batch.states[layer] for batch in sample]
            x_TD, y_TD = (torch.cat(tensors)[rest_T].float().cpu() for tensors in zip(*states, strict=True))
            yield layer, Sample(Norms.of(states, first), x_TD, y_TD)


def layer_generator(seed: int, layer: int) -> torch.Generator:
    """The generator of a layer's random parts."""
    return torch.Generator().manual_seed(seed * 1000 + layer)


def _parts(groups: Sequence[Sequence[int]], numbers: int) -> list[list[Sequence[int]]]:
    """Split the routing groups into parts whose samples fit into memory together; a part has at least one group."""
    room = max(1, _SAMPLE_BYTES // (numbers * 2 * 2))  # two states for each layer, two bytes for each number
    parts: list[list[Sequence[int]]] = [[]]
    for group in groups:
        if parts[-1] and sum(map(len, parts[-1])) + len(group) > room:
            parts.append([])
        parts[-1].append(group)
    return parts


def _on_cpu(model: MlpStates, layer: int) -> torch.nn.Module:
    """A layer's MLP in float32 on the CPU; the model keeps its own."""
    return deepcopy(model.mlp(layer)).float().cpu()
