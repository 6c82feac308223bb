import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monet.eval.ablation.measure import ablate
from monet.eval.ablation.results import AblationResult
from monet.eval.attribution.selection import select
from monet.eval.attribution.stats import collect
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.controls import Controls
from monet.eval.core.window_losses import LossStore, window_losses
from monet.masks.expert_mask import ExpertMask
from tests.eval.conftest import LABELS


@pytest.fixture
def planted_masks(planted_model, planted_data):
    return select(collect(planted_model, planted_data, progress=False))


def run(model, masks, data, out, **options) -> AblationResult:
    found = ablate(model, masks, data, out=out, progress=False, **options)
    assert found is not None
    return found


def test_losses_are_those_of_the_plain_formula(random_model, random_data):
    found = window_losses(random_model, None, random_data, batch_size=5)
    for number, (sequence, label) in enumerate(zip(random_data.sequences, random_data.label_of, strict=True)):
        with torch.no_grad():
            logits = random_model(torch.tensor([sequence])).logits[0, :-1].double()
        wanted = F.cross_entropy(logits, torch.tensor(sequence[1:]), reduction="sum").item()
        assert found.loss_sum_W[number] == pytest.approx(wanted, rel=1e-5)
        assert found.tokens_W[number] == len(sequence) - 1
        assert found.label_W[number] == label


def test_padding_side_and_batch_size_do_not_move_losses(random_model, random_data):
    whole = window_losses(random_model, None, random_data, batch_size=17)
    other = window_losses(random_model, None, replace(random_data, padding_side="left"), batch_size=4)
    np.testing.assert_allclose(whole.loss_sum_W, other.loss_sum_W, rtol=1e-4)
    np.testing.assert_array_equal(whole.tokens_W, other.tokens_W)


def test_removing_nothing_changes_exactly_nothing(random_model, random_data):
    free = window_losses(random_model, None, random_data)
    kept = window_losses(random_model, ExpertMask.keep_all(random_model.config), random_data)
    np.testing.assert_array_equal(free.loss_sum_W, kept.loss_sum_W)


def test_a_mask_leaves_the_model_as_it_was(random_model, random_data):
    before = window_losses(random_model, None, random_data)
    masked = window_losses(random_model, ExpertMask.random(random_model.config, 30, seed=0), random_data)
    after = window_losses(random_model, None, random_data)
    assert not np.array_equal(before.loss_sum_W, masked.loss_sum_W)
    np.testing.assert_array_equal(before.loss_sum_W, after.loss_sum_W)


def test_the_planted_experts_are_what_their_labels_lose(planted_model, planted_masks, planted_data, tmp_path):
    result = run(planted_model, planted_masks, planted_data, tmp_path)
    assert result.passes
    delta = np.array([[cell.value for cell in row] for row in result.delta])
    assert (np.diag(delta) > 0.1).all()
    np.testing.assert_allclose(delta - np.diag(np.diag(delta)), 0.0, atol=1e-6)
    for number, verdict in enumerate(result.domains):
        assert verdict.name == LABELS[number]
        assert verdict.target_delta == delta[number, number] == pytest.approx(delta[0, 0], rel=0.3)
        assert verdict.target_interval[0] <= verdict.target_delta <= verdict.target_interval[1]
        assert verdict.others_max_delta == max(np.delete(delta[number], number))
        assert verdict.others_mean_delta == pytest.approx(np.delete(delta[number], number).mean())
        assert (verdict.removed, verdict.removed_per_group, verdict.share) == (1, [1], 1 / 256)
        assert verdict.passes and not verdict.reason


def test_means_and_perplexities_are_token_weighted(random_model, random_data, tmp_path):
    masks = {"left": ExpertMask.random(random_model.config, 20, seed=0)}
    result = run(random_model, masks, random_data, tmp_path, controls=Controls(1))
    whole = window_losses(random_model, None, random_data)
    masked = window_losses(random_model, masks["left"], random_data)
    for number, baseline in enumerate(result.evaluated):
        rows = whole.label_W == number
        tokens = whole.tokens_W[rows].sum()
        before, after = (found.loss_sum_W[rows].sum() / tokens for found in (whole, masked))
        assert baseline.loss.value == pytest.approx(before)
        assert baseline.perplexity == pytest.approx(math.exp(before))
        assert (baseline.tokens, baseline.windows, baseline.documents) == (tokens, rows.sum(), rows.sum())
        assert result.delta[0][number].value == pytest.approx(after - before)
        assert result.perplexity[0][number] == pytest.approx(math.exp(after))


def test_a_mask_no_better_than_random_does_not_pass(random_model, random_data, tmp_path):
    masks = {label: ExpertMask.random(random_model.config, [4, 4], seed=9 + i) for i, label in enumerate(LABELS)}
    result = run(random_model, masks, random_data, tmp_path, controls=Controls(4))
    assert not result.passes
    for verdict in result.domains:
        assert verdict.random_delta == pytest.approx(np.mean(verdict.random_per_control))
        low, high = verdict.random_interval
        assert low < min(verdict.random_per_control) and max(verdict.random_per_control) < high
        assert verdict.passes == (not verdict.reason)


def test_a_mask_that_hits_another_domain_harder_does_not_pass(planted_model, planted_masks, planted_data, tmp_path):
    swapped = {"left": planted_masks["middle"] & planted_masks["left"], "right": planted_masks["middle"]}
    result = run(planted_model, swapped, planted_data, tmp_path)
    both, other = result.domains
    assert both.target_interval[0] > both.random_interval[1] and both.others_max_name == "middle"
    assert both.passes == (both.target_delta > both.others_max_delta)
    assert not other.passes and other.others_max_name == "middle"
    assert other.reason.startswith("middle lost as much or more; within the interval of random masks: p ")
    assert other.target_delta == pytest.approx(0.0, abs=1e-6) and other.others_max_delta > 0.1


def test_a_mask_that_removes_nothing_is_kept_as_a_row_of_zeros(planted_model, planted_masks, planted_data, tmp_path):
    masks = {**planted_masks, "middle": ExpertMask.keep_all(planted_model.config)}
    result = run(planted_model, masks, planted_data, tmp_path)
    verdict = result.domains[1]
    assert [cell.value for cell in result.delta[1]] == [cell.value for cell in result.random[1]] == [0.0] * 3
    assert (verdict.removed, verdict.passes, verdict.reason) == (0, False, "no expert belongs to it")
    assert result.domains[0].passes and result.domains[2].passes


def test_controls_on_their_target_only(planted_model, planted_masks, planted_data, tmp_path):
    everywhere = run(planted_model, planted_masks, planted_data, tmp_path / "a", control_on="all")
    targets = run(planted_model, planted_masks, planted_data, tmp_path / "b")
    for i in range(3):
        for j in range(3):
            cell = targets.random[i][j]
            assert (cell is None) == (i != j)
            if cell is not None:
                assert cell.value == pytest.approx(everywhere.random[i][j].value, abs=1e-6)


def test_windows_of_one_document_are_drawn_together(planted_model, planted_masks, planted_data, tmp_path):
    """The same text in twice as many windows: if windows are drawn, the interval is too narrow."""

    class InPairs(type(planted_data)):
        def batches(self, batch_size):
            for batch in super().batches(batch_size):
                yield batch._replace(document_B=[str(int(name) // 6) for name in batch.document_B])

    data = InPairs(planted_data.labels, planted_data.sequences, planted_data.label_of)
    result = run(planted_model, planted_masks, data, tmp_path, bootstrap=Bootstrap(unit="document"))
    assert [baseline.documents for baseline in result.evaluated] == [5, 5, 5]
    assert [baseline.windows for baseline in result.evaluated] == [10, 10, 10]
    by_window = run(planted_model, planted_masks, data, tmp_path, bootstrap=Bootstrap(unit="window"))
    assert by_window.delta[0][0].value == result.delta[0][0].value
    assert by_window.delta[0][0].low != result.delta[0][0].low


def batches_run(model, monkeypatch, die_after=None):
    """A list that grows with every forward of the model; the forward after `die_after` dies."""
    forward = model.forward
    run = []

    def counted(*args, **options):
        if len(run) == die_after:
            raise KeyboardInterrupt
        run.append(options["input_ids"].shape)
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", counted)
    return run


@pytest.mark.parametrize("died_after", [1, 3, 14, 51])
def test_a_killed_evaluation_goes_on_with_the_next_batch(
    planted_model, planted_masks, planted_data, tmp_path, monkeypatch, died_after
):
    few = {"controls": Controls(3), "control_on": "all"}
    whole = run(planted_model, planted_masks, planted_data, tmp_path / "whole", **few)
    # the whole model, three masks, three controls for each, of 30 sequences in batches of 8
    passes, batches = 13, 4
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        batches_run(planted_model, patched, died_after)
        run(planted_model, planted_masks, planted_data, tmp_path / "killed", **few)
    assert not (tmp_path / "killed" / "result.json").exists()
    with monkeypatch.context() as patched:
        forwards = batches_run(planted_model, patched)
        resumed = run(planted_model, planted_masks, planted_data, tmp_path / "killed", **few)
    assert len(forwards) == passes * batches - died_after
    undated = {"provenance": {**whole.provenance, "date": ""}}
    assert replace(resumed, **undated) == replace(whole, **undated)
    with monkeypatch.context() as patched:
        assert not batches_run(planted_model, patched)
        run(planted_model, planted_masks, planted_data, tmp_path / "killed", **few)


def test_a_batch_cut_in_its_middle_is_run_again(random_model, random_data, tmp_path, monkeypatch):
    store = LossStore(tmp_path, random_model, 5)
    whole = store.losses(None, random_data, "no mask", lambda _: None)
    path = store.path(None, random_data)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + 7]) + lines[8][:20])  # one batch, two windows of the next, half a line
    forwards = batches_run(random_model, monkeypatch)
    again = store.losses(None, random_data, "no mask", lambda _: None)
    assert len(forwards) == 3
    for name in ("loss_sum_W", "tokens_W", "label_W", "document_W"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_soft_masks_go_through_and_lie_between(planted_model, planted_data, tmp_path):
    statistics = collect(planted_model, planted_data, progress=False)
    results = [run(planted_model, select(statistics, keep=keep), planted_data, tmp_path) for keep in (0.0, 0.3, 0.7)]
    for label in range(3):
        removed, more, less = (result.domains[label].target_delta for result in results)
        assert removed > more > less > 0
        assert results[1].domains[label].removed == 1
    assert results[1].provenance["masks"]["left"]["keep"] == 0.3


def test_kept_losses_are_of_the_same_weights_mask_and_data(random_model, random_data, tmp_path):
    mask = ExpertMask.random(random_model.config, 5, seed=0)
    first = LossStore(tmp_path, random_model, 8)
    paths = {first.path(None, random_data), first.path(mask, random_data), first.path(mask, random_data.only(["left"]))}
    paths.add(LossStore(tmp_path, random_model, 4).path(mask, random_data))
    with torch.no_grad():
        random_model.lm_head.weight[0, 0] += 1.0  # does not change the routing, nor the fingerprint
    paths.add(LossStore(tmp_path, random_model, 8).path(mask, random_data))
    random_model.set_expert_mask(mask)
    paths.add(LossStore(tmp_path, random_model, 8).path(mask, random_data))
    for key, value in (("rms_norm_eps", 1e-3), ("moe_topk", 3), ("rope_parameters", {"rope_theta": 1e3})):
        setattr(random_model.config, key, value)  # the weights do not change
        paths.add(LossStore(tmp_path, random_model, 8).path(mask, random_data))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # allows another library, or fewer bits, for products
    paths.add(LossStore(tmp_path, random_model, 8).path(mask, random_data))
    torch.set_float32_matmul_precision(before)
    assert len(paths) == 10


def test_equal_sequences_under_other_numbers_do_not_share_losses(random_model, random_data, tmp_path):
    """Compare a part of some data with data that consist only of this part."""
    numbers = [5, 1, 8, 0]
    part = replace(random_data, kept=numbers)
    sequences = [random_data.sequences[n] for n in numbers]
    alone = replace(random_data, sequences=sequences, label_of=[random_data.label_of[n] for n in numbers])
    store, nothing = LossStore(tmp_path, random_model, 2), lambda count: None
    found = [store.losses(None, data, "no mask", nothing).loss_sum_W for data in (part, alone, part)]
    assert all(np.array_equal(again, found[0]) for again in found)


def test_a_damaged_kept_file_is_scored_again(random_model, random_data, tmp_path):
    store = LossStore(tmp_path, random_model, 8)
    whole = store.losses(None, random_data, "no mask", lambda _: None)
    path = store.path(None, random_data)
    path.write_bytes(path.read_bytes()[:100])  # within the first line
    again = store.losses(None, random_data, "no mask", lambda _: None)
    np.testing.assert_array_equal(whole.loss_sum_W, again.loss_sum_W)


def test_results_survive_json(planted_model, planted_masks, planted_data, tmp_path):
    result = run(planted_model, planted_masks, planted_data, tmp_path, control_on="target")
    assert AblationResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert AblationResult.load(tmp_path) == AblationResult.load(tmp_path / "result.json") == result
