"""Suites divided over processes: each part computes its conditions, and the command without a part collects them."""

import threading

import pytest
import torch

from monet.errors import ConfigError
from monet.eval.ablation.measure import ablate
from monet.eval.attribution.rules import Ratio
from monet.eval.attribution.stats import collect
from monet.eval.core.conditions import conditions, dealt
from monet.eval.core.controls import Controls
from monet.eval.core.store import ExampleStore
from monet.eval.core.window_losses import LossStore
from monet.eval.suites.loss.curve import evaluate_curve
from monet.masks.expert_mask import ExpertMask
from monet.parts import Part
from tests.eval.conftest import LABELS

KEY = {"weights": "a"}


@pytest.fixture
def masks(random_model):
    return {label: ExpertMask.random(random_model.config, 5, seed=number) for number, label in enumerate(LABELS)}


@pytest.fixture
def forwards(random_model, monkeypatch):
    """A list that grows with every forward pass."""
    run, forward = [], random_model.forward
    monkeypatch.setattr(random_model, "forward", lambda *args, **options: run.append(1) or forward(*args, **options))
    return run


def undated(result) -> dict:
    content = result.to_json()
    del content["provenance"]["date"]
    return content


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_pass_falls_to_one_part(masks, count):
    asked = [(condition, number) for number, condition in enumerate(conditions(masks, Controls(3), ""))]
    parts = [dealt(asked, Part(index, count)) for index in range(count)]
    assert sorted(number for part in parts for _, number in part) == list(range(13))
    of_all_text = [sum(condition.control is None for condition, _ in part) for part in parts]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and max(of_all_text) - min(of_all_text) <= 1
    assert dealt(asked, None) == asked


def test_a_part_is_written_as_i_of_n():
    assert Part.parse("0/8") == Part(0, 8) and Part.parse(None) is None
    for wrong in ("8/8", "1", "a/2", "-1/2", "1/0"):
        with pytest.raises(ConfigError, match="part"):
            Part.parse(wrong)


@pytest.mark.parametrize("control_on", ["all", "target"])
def test_parts_of_an_ablation_gather_to_the_whole(random_model, random_data, masks, tmp_path, forwards, control_on):
    options = {"controls": Controls(2), "control_on": control_on, "progress": False}
    whole = ablate(random_model, masks, random_data, out=tmp_path / "whole", **options)
    alone = len(forwards)
    for index in (2, 0, 1):
        assert ablate(random_model, masks, random_data, out=tmp_path / "parts", part=Part(index, 3), **options) is None
    assert len(forwards) == 2 * alone and not (tmp_path / "parts" / "result.json").exists()
    gathered = ablate(random_model, masks, random_data, out=tmp_path / "parts", **options)
    assert undated(gathered) == undated(whole) and len(forwards) == 2 * alone


def test_parts_of_a_curve_gather_to_the_whole(random_model, random_data, tmp_path, forwards):
    statistics = collect(random_model, random_data, progress=False)
    forwards.clear()
    given = (random_model, statistics, Ratio(), [4.0, 1.2], random_data)
    whole = evaluate_curve(*given, out=tmp_path / "whole", progress=False)
    alone = len(forwards)
    for index in range(4):
        assert evaluate_curve(*given, out=tmp_path / "parts", part=Part(index, 4), progress=False) is None
    gathered = evaluate_curve(*given, out=tmp_path / "parts", progress=False)
    assert undated(gathered) == undated(whole) and len(forwards) == 2 * alone


def test_a_process_waits_for_the_losses_that_another_one_computes(random_model, random_data, masks, tmp_path, forwards):
    store = LossStore(tmp_path / "losses", random_model, 8)
    whole = store.losses(None, random_data, "no mask", lambda _: None)
    alone = len(forwards)
    done = []
    with ExampleStore(store.folder, {**store.settings, "data": random_data.fingerprint}):
        other = threading.Thread(target=lambda: done.append(store.losses(None, random_data, "x", lambda _: None)))
        other.start()
        other.join(0.3)
        assert not done  # it waits, because the kept losses may still grow
    other.join(30)
    assert (done[0].loss_sum_W == whole.loss_sum_W).all() and len(forwards) == alone


def test_parts_that_share_a_key_write_files_of_their_own(tmp_path):
    with (
        ExampleStore(tmp_path, KEY, part=Part(0, 2)) as first,
        ExampleStore(tmp_path, KEY, part=Part(1, 2), remember=lambda outcome: outcome["status"]) as second,
    ):
        first.put("a", {"status": "ok"})
        second.put("b", {"status": "failed"})
        assert "a" not in second and second["b"] == "failed"
    with ExampleStore(tmp_path, KEY, part=Part(1, 2)) as again:
        assert again["a"] == {"status": "ok"} and again["b"] == {"status": "failed"}
    with ExampleStore(tmp_path, KEY, parts=True, remember=lambda outcome: outcome["status"]) as gathered:
        assert len(gathered) == 2 and gathered["a"] == "ok"
        gathered.put("c", {"status": "ok"})
    with ExampleStore(tmp_path, KEY, part=Part(0, 3)) as later:
        assert len(later) == 3
    with ExampleStore(tmp_path, KEY) as own:
        assert len(own) == 1


def test_conditions_hold_no_mask_of_their_own(masks):
    found = conditions(masks, Controls(1000), "")
    assert all(condition.like in masks.values() for condition in found[1:])
    random = found[2]
    assert random.mask != masks[LABELS[0]] and torch.equal(random.mask.keep_REE, random.mask.keep_REE)
