"""Records of a run: dead keys over a window, logs cut back exactly, validation equal to a plain computation."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from monet.data.loading.windows import WindowDataset
from monet.training.metrics import RouterHealth, truncate_log
from monet.training.weights import load_checkpoint_model
from tests.training.runs import read_log


def fired(*alive):
    """One group, two sides, one head, two keys: those at the given flat indices fired."""
    places = torch.zeros(4, dtype=torch.bool)
    places[list(alive)] = True
    return places.view(1, 2, 1, 2)


def test_a_key_is_dead_after_a_window_without_a_token():
    health = RouterHealth(window_steps=3)
    assert health.dead_share(0).shape == (0,)
    health.update(fired(0, 1, 2), 1)
    assert health.dead_share(1) == 0.25
    health.update(fired(0), 2)
    assert health.dead_share(2) == 0.25
    health.update(fired(0), 3)
    assert health.dead_share(3) == 0.25
    health.update(fired(0), 4)
    assert health.dead_share(4) == 0.75
    health.update(fired(3), 5)
    assert health.dead_share(5) == 0.5


def test_micro_batches_of_one_step_count_together_and_state_comes_back():
    health = RouterHealth(window_steps=1)
    for place in range(4):
        health.update(fired(place), 1)
    assert health.dead_share(1) == 0.0
    other = RouterHealth(window_steps=1)
    other.load_state_dict(health.state_dict())
    other.update(fired(0), 2)
    assert other.dead_share(2) == 0.75


def test_a_log_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 0.1 * step}) for step in range(1, 8)]
    path.write_text("\n".join(lines) + '\n{"step": 8, "lo', encoding="utf-8")
    truncate_log(path, 5)
    assert path.read_text(encoding="utf-8") == "\n".join(lines[:5]) + "\n"
    truncate_log(path, 0)
    assert path.read_text(encoding="utf-8") == ""
    truncate_log(tmp_path / "absent.jsonl", 5)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("rest", [b"", b"\n", b'\n{"step": 7}', b'\n{"st', b"\n\x00\x00\xff", b"\n[8]\n", b"\n\n"])
def test_a_log_ends_in_a_whole_line_whatever_follows_it(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}' + rest)
    truncate_log(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_only_what_is_cut_off_a_log_is_read(tmp_path, monkeypatch):
    path, read = tmp_path / "metrics.jsonl", []
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(20_000)), encoding="utf-8")
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line, **options: read.append(line) or loads(line, **options))
    truncate_log(path, 19_989)
    assert len(read) == 11
    assert path.read_text(encoding="utf-8").endswith('{"step": 19989}\n')


def test_validation_is_the_plain_mean_loss_of_each_domain(train, settings, data_dir):
    settings["data"]["max_val_windows"] = None
    settings["trainer"]["val_check_interval"] = 24
    run = train()
    (entry,) = read_log(run.run_dir, "validation.jsonl")
    model = load_checkpoint_model(run.checkpoints / "step-00000012")
    windows = WindowDataset(data_dir, "validation", 32)
    expected = {name: [] for name in windows.domains}
    with torch.no_grad():
        for window in (windows[i] for i in range(len(windows))):
            ids = torch.as_tensor(window["input_ids"])[None]
            loss = F.cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:])
            expected[windows.domains[int(window["domain"])]].append(float(loss))
    for name, values in expected.items():
        assert entry["loss_by_domain"][name] == pytest.approx(sum(values) / len(values), rel=1e-6)
        assert entry["perplexity_by_domain"][name] == pytest.approx(math.exp(sum(values) / len(values)), rel=1e-5)


def test_logged_numbers_are_means_over_micro_batches(train, settings):
    settings["model"]["router_loss"] = {"uniformity_weight": 0.25, "ambiguity_weight": 0.5, "uniformity_on": "routing"}
    for entry in read_log(train("run", "--trainer.max_steps=3").run_dir):
        total = entry["lm_loss"] + 0.25 * entry["uniformity_loss"] + 0.5 * entry["ambiguity"]
        assert entry["loss"] == pytest.approx(total, rel=1e-6)
        assert entry["uniformity"] == pytest.approx(entry["uniformity_loss"], rel=1e-6)
        assert entry["uniformity"] >= math.log(8) - 1e-6
        assert 1 <= entry["active_per_head"] <= 8
        assert 0 <= entry["dead_share"] < 1
