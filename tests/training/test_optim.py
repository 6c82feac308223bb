"""Parameter groups by name and shape; schedules compared with values computed by hand."""

import math

import pytest
import torch
from torch import nn

from monet.errors import ConfigError
from monet.training.optim import (
    OptimizerSettings,
    ScheduleSettings,
    build_optimizer,
    build_scheduler,
    parameter_groups,
    reapply_settings,
)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(4, 6, bias=False)
        self.w2 = nn.Linear(4, 6, bias=False)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 4)
        self.router = Router()
        self.u = nn.Linear(4, 8)
        self.b1 = nn.Parameter(torch.zeros(3, 2))
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 10, bias=False)


def names_by_group(model, settings):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(model, settings)}


def test_only_matrices_decay_and_routers_stand_apart():
    groups = names_by_group(Tiny(), OptimizerSettings())
    assert groups == {
        "router_decay": {"router.w1.weight", "router.w2.weight"},
        "body_decay": {"u.weight", "lm_head.weight"},
        "body_no_decay": {"embed_tokens.weight", "u.bias", "b1", "norm.weight", "norm.bias"},
    }


def test_embeddings_decay_on_request():
    groups = names_by_group(Tiny(), OptimizerSettings(decay_embeddings=True))
    assert "embed_tokens.weight" in groups["body_decay"]


def test_a_tied_head_follows_the_embedding_and_counts_once():
    model = Tiny()
    model.lm_head.weight = model.embed_tokens.weight
    groups = names_by_group(model, OptimizerSettings())
    assert "embed_tokens.weight" in groups["body_no_decay"]
    assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))


def test_a_frozen_router_gets_no_group():
    model = Tiny()
    model.router.requires_grad_(False)
    assert set(names_by_group(model, OptimizerSettings())) == {"body_decay", "body_no_decay"}


def test_group_settings():
    settings = OptimizerSettings(learning_rate=1e-3, weight_decay=0.3, router_lr_multiplier=4.0)
    groups = {g["name"]: g for g in build_optimizer(Tiny(), settings).param_groups}
    assert groups["router_decay"]["lr"] == 4e-3
    assert groups["body_decay"]["lr"] == 1e-3
    assert groups["body_decay"]["weight_decay"] == 0.3
    assert groups["body_no_decay"]["weight_decay"] == 0.0


@pytest.mark.parametrize(("settings", "step", "expected"), [
    (ScheduleSettings("constant"), 99, 1.0),
    (ScheduleSettings("constant", warmup_steps=10), 0, 0.1),
    (ScheduleSettings("cosine", warmup_steps=10), 0, 0.1),
    (ScheduleSettings("cosine", warmup_steps=10), 9, 1.0),
    (ScheduleSettings("cosine", warmup_steps=10), 10, 1.0),
    (ScheduleSettings("cosine", warmup_steps=10), 55, 0.55),
    (ScheduleSettings("cosine", warmup_steps=10, final_lr_ratio=0.0), 40, 0.75),
    (ScheduleSettings("cosine", warmup_steps=10), 100, 0.1),
    (ScheduleSettings("cosine", warmup_steps=10), 500, 0.1),
    (ScheduleSettings("wsd", warmup_steps=10, decay_steps=20, final_lr_ratio=0.0), 79, 1.0),
    (ScheduleSettings("wsd", warmup_steps=10, decay_steps=20, final_lr_ratio=0.0), 80, 1.0),
    (ScheduleSettings("wsd", warmup_steps=10, decay_steps=20, final_lr_ratio=0.0), 90, 0.5),
    (ScheduleSettings("wsd", warmup_steps=10, final_lr_ratio=0.5), 95, 0.75),
])  # fmt: skip
def test_schedule_values_over_a_hundred_steps(settings, step, expected):
    assert settings.factor(step, 100) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("settings", "total", "warmup"), [
    (ScheduleSettings(), 50, 0),
    (ScheduleSettings(total_steps=200, warmup_fraction=0.02), 200, 4),
    (ScheduleSettings(warmup_fraction=0.1), 50, 5),
    (ScheduleSettings(total_tokens=1.3e4, warmup_steps=7), 130, 7),
    (ScheduleSettings(total_tokens=1.3e4 + 1), 131, 0),
    (ScheduleSettings(total_steps=47684, warmup_fraction=0.02), 47684, 954),
])  # fmt: skip
def test_a_schedule_is_counted_in_steps_tokens_or_shares(settings, total, warmup):
    found = settings.in_steps(run_steps=50, tokens_per_step=100)
    assert (found.total_steps, found.warmup_steps) == (total, warmup)
    assert found.in_steps(7, 7) == found


def test_scheduler_follows_the_factor():
    optimizer = build_optimizer(Tiny(), OptimizerSettings(learning_rate=2.0, router_lr_multiplier=3.0))
    settings = ScheduleSettings("cosine", warmup_steps=3)
    scheduler = build_scheduler(optimizer, settings, 10)
    for step in range(10):
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
        assert rates["body_decay"] == 2.0 * settings.factor(step, 10)
        assert rates["router_decay"] == 6.0 * settings.factor(step, 10)
        optimizer.step()
        scheduler.step()


def test_restored_optimiser_takes_the_configured_settings():
    old, new = OptimizerSettings(learning_rate=1.0), OptimizerSettings(learning_rate=0.5, weight_decay=0.0)
    model = Tiny()
    optimizer = build_optimizer(model, new)
    scheduler = build_scheduler(optimizer, ScheduleSettings("cosine", warmup_steps=4), 10)
    saved = build_optimizer(model, old)
    saved_scheduler = build_scheduler(saved, ScheduleSettings("cosine", warmup_steps=4), 10)
    saved.step()
    saved_scheduler.step()
    optimizer.load_state_dict(saved.state_dict())
    scheduler.load_state_dict(saved_scheduler.state_dict())
    reapply_settings(optimizer, scheduler, model, old)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in saved.param_groups]
    reapply_settings(optimizer, scheduler, model, new)
    assert all(g["lr"] == 0.5 * 0.5 for g in optimizer.param_groups)
    assert all(g["weight_decay"] == 0.0 for g in optimizer.param_groups)
    scheduler.step()
    assert all(g["lr"] == 0.5 * 0.75 for g in optimizer.param_groups)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: OptimizerSettings(learning_rate=0), "learning_rate.*0"),
    (lambda: OptimizerSettings(learning_rate=math.nan), "learning_rate.*nan"),
    (lambda: OptimizerSettings(beta2=1.0), r"beta2.*1\.0"),
    (lambda: OptimizerSettings(weight_decay=-0.1), r"weight_decay.*-0\.1"),
    (lambda: OptimizerSettings(router_lr_multiplier=-2), "router_lr_multiplier.*-2"),
    (lambda: ScheduleSettings(warmup_steps=-1), "warmup_steps.*-1"),
    (lambda: ScheduleSettings(final_lr_ratio=1.5), r"final_lr_ratio.*1\.5"),
    (lambda: ScheduleSettings("cosine", decay_steps=5), "decay_steps = 5.*cosine"),
    (lambda: ScheduleSettings(total_steps=0), r"total_steps.*0"),
    (lambda: ScheduleSettings(total_tokens=math.inf), r"total_tokens.*inf"),
    (lambda: ScheduleSettings(total_steps=5, total_tokens=5.0), "total_steps = 5 and schedule.total_tokens = 5"),
    (lambda: ScheduleSettings(warmup_fraction=1.5), r"warmup_fraction.*1\.5"),
    (lambda: ScheduleSettings(warmup_steps=2, warmup_fraction=0.5), "warmup_steps = 2.*warmup_fraction = 0.5"),
    (lambda: ScheduleSettings("cosine", warmup_steps=200).factor(0, 100), "warmup_steps = 200.*100"),
    (lambda: ScheduleSettings("wsd", warmup_steps=60, decay_steps=60).factor(0, 100), "60.*60.*100"),
])  # fmt: skip
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
