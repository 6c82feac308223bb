"""The loop of stage 1: independent layers, rates, thresholds, and other modules than Monet layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from monet.convert.dense.local import LocalOptions, LocalTraining, Norms
from monet.convert.dense.precision import Arithmetic
from monet.convert.dense.stand_in import StandIn, build_stand_ins
from monet.convert.dense.stream import StateBatch, States
from monet.errors import ConfigError, NonFiniteError
from monet.kernels.routing.reference import normal_quantile
from tests.model.tiny import fill, states_equal, tiny_config

D, T = 24, 40
CPU = Arithmetic(torch.device("cpu"), False)


def batch(number: int, layers: list[int]) -> StateBatch:
    """States of a batch: the outputs are a fixed function of the inputs; position 0 of each window is far off."""
    states = {}
    for layer in layers:
        generator = torch.Generator().manual_seed(100 * number + layer)
        x_TD = torch.randn(T, D, generator=generator)
        y_TD = x_TD.roll(1, 1).relu() * x_TD
        y_TD[::8] *= 100
        states[layer] = States(x_TD, y_TD)
    first_T = torch.arange(T) % 8 == 0
    return StateBatch(states, first_T, torch.zeros(T, dtype=torch.int64))


def norms_of(layers: list[int]) -> dict[int, Norms]:
    one = batch(0, layers)
    return {layer: Norms.of([one.states[layer]], [one.first_T]) for layer in layers}


def filled(layers: list[int]) -> dict[int, StandIn]:
    students = build_stand_ins(tiny_config(), [[layer] for layer in layers])
    for layer, student in students.items():
        fill(student.experts, layer)
        fill(student.router, layer)
    return students


def train(students: dict[int, Any], steps: int = 6, groups: Any = None, **options: Any) -> LocalTraining:
    layers = list(students)
    groups = groups or [[layer] for layer in layers]
    settings = LocalOptions(warmup_steps=2, **options)
    training = LocalTraining(students, groups, norms_of(layers), settings, CPU, steps)
    for number in range(1, steps + 1):
        training.learn(batch(number, layers))
    return training


def test_layers_do_not_affect_each_other():
    together, first, second = filled([2, 5]), filled([2]), filled([5])
    train(together)
    train(first)
    train(second)
    assert states_equal(together[2], first[2]) and states_equal(together[5], second[5])


def test_layers_of_a_group_teach_their_router_together():
    students = build_stand_ins(tiny_config(), [[2, 5]])
    for layer, student in students.items():
        fill(student.experts, layer)
    fill(students[2].router)
    before = students[2].router.w1.weight.clone()
    training = LocalTraining(students, [[2, 5]], norms_of([2, 5]), LocalOptions(), CPU, 2)
    training.learn(batch(1, [2, 5]))
    assert not torch.equal(before, students[2].router.w1.weight)
    assert int(students[2].router.norm1.num_batches_tracked) == 1001


def test_the_error_falls():
    training = train(filled([3]), steps=60, learning_rate=1e-2)
    assert training.curve[-1]["fvu"]["3"] < 0.8 * training.curve[0]["fvu"]["3"]


def test_any_module_with_the_interface_trains():
    student = nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, D))
    training = train({3: student}, steps=40, learning_rate=1e-2)
    assert training.curve[-1]["fvu"]["3"] < 0.8 * training.curve[0]["fvu"]["3"]


def test_first_tokens_do_not_count_in_the_fvu_nor_in_the_norms():
    layers = [3]
    whole = batch(1, layers)
    changed = whole.states[3].y_TD.clone()
    changed[whole.first_T] *= 50
    other = StateBatch({3: States(whole.states[3].x_TD, changed)}, whole.first_T, whole.domain_T)
    training = LocalTraining(filled(layers), [[3]], norms_of(layers), LocalOptions(first_weight=0.0), CPU, 2)
    again = LocalTraining(filled(layers), [[3]], norms_of(layers), LocalOptions(first_weight=0.0), CPU, 2)
    assert training.learn(whole) == again.learn(other)
    one, two = (Norms.of([found.states[3]], [found.first_T]) for found in (whole, other))
    assert one.variance == two.variance and one.first_power < two.first_power
    assert states_equal(training.students[3], again.students[3])


def test_the_rate_rises_holds_and_falls():
    options = LocalOptions(learning_rate=1.0, warmup_steps=4, decay_from=0.5, final_rate=0.1)
    rates = [options.rate(step, 20) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4:10] == [1.0] * 6
    assert rates[10:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_the_number_of_active_keys_can_fall():
    options = LocalOptions(topk_start=5, topk_anneal=0.5)
    first, last = normal_quantile(5, 6), normal_quantile(2, 6)
    assert options.quantile(0, 20, 6, 2) == first
    assert options.quantile(5, 20, 6, 2) == pytest.approx((first + last) / 2)
    assert options.quantile(10, 20, 6, 2) == options.quantile(19, 20, 6, 2) == last
    training = train(filled([3]), steps=4, topk_start=5)
    assert training.students[3].router.quantile == last


def test_a_loss_that_is_not_finite_ends_before_the_update():
    students = filled([3])
    training = LocalTraining(students, [[3]], norms_of([3]), LocalOptions(), CPU, 2)
    weight = students[3].experts.u1.weight.clone()
    broken = batch(1, [3])
    broken.states[3].y_TD[3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 3"):
        training.learn(broken)
    assert torch.equal(weight, students[3].experts.u1.weight)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tokens": -1}, "tokens -1"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"decay_from": 1.5}, "decay_from 1.5"),
        ({"topk_start": 1}, "topk_start 1"),
        ({"topk_start": 6}, "topk_start 6"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        LocalOptions(**options).check(6, 2)
