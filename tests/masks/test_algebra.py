"""ExpertMask as an object: building, counting and combining; hard masks are compared with sets of expert ids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monet import ExpertMask
from monet.errors import CheckpointError, ConfigError
from tests.model.tiny import tiny_config

CONFIG = tiny_config(moe_experts=3)
R, E = 2, 3
EVERYTHING = frozenset((group, expert) for group in range(R) for expert in range(E * E))
SETS = st.frozensets(st.sampled_from(sorted(EVERYTHING)))


def mask_keeping(kept: frozenset) -> ExpertMask:
    removed = {group: [expert for g, expert in sorted(EVERYTHING - kept) if g == group] for group in range(R)}
    return ExpertMask.from_removed(CONFIG, removed)


def kept_by(mask: ExpertMask) -> frozenset:
    return frozenset((group, expert) for group, expert in EVERYTHING if mask.keep_REE[group].flatten()[expert] == 1)


@settings(max_examples=40, deadline=None)
@given(SETS, SETS)
def test_algebra_is_that_of_sets(first, second):
    m, n = mask_keeping(first), mask_keeping(second)
    assert kept_by(m) == first
    assert kept_by(m & n) == first & second
    assert kept_by(m | n) == first | second
    assert kept_by(m - n) == first - second
    assert kept_by(~m) == EVERYTHING - first
    assert (m == n) == (first == second)
    assert m.num_kept == len(first) and m.num_removed == 18 - len(first) and m.num_experts == 18
    assert m.removed_per_group == [9 - sum(g == group for g, _ in first) for group in range(R)]
    assert all(result.is_hard for result in (m & n, m | n, m - n, ~m))


def test_soft_masks_are_fuzzy_sets():
    m, n = (ExpertMask(torch.rand(R, E, E)) for _ in range(2))
    assert torch.equal((m & n).keep_REE, torch.minimum(m.keep_REE, n.keep_REE))
    assert torch.equal((m | n).keep_REE, torch.maximum(m.keep_REE, n.keep_REE))
    assert torch.equal((~m).keep_REE, 1 - m.keep_REE)
    assert torch.equal((m - n).keep_REE, torch.minimum(m.keep_REE, 1 - n.keep_REE))
    assert ~~m != n and not m.is_hard
    hard = ExpertMask(torch.rand(R, E, E) > 0.5)
    assert torch.equal((m & hard).keep_REE, m.keep_REE * hard.keep_REE)
    assert ExpertMask(hard.keep_REE.float()) == hard, "the same weights are the same mask whatever their dtype"


def test_the_id_of_an_expert_is_i_times_E_plus_j():
    mask = ExpertMask.from_removed(CONFIG, {1: [1 * E + 2]})
    assert mask.keep_REE[1, 1, 2] == False and mask.num_removed == 1  # noqa: E712
    assert repr(mask) == "ExpertMask(1 of 18 experts removed; 2 groups, E=3)"
    for ids in (torch.tensor([5]), range(5, 6), (5,)):
        assert ExpertMask.from_removed(CONFIG, {1: ids}) == mask
    assert (
        ExpertMask.from_removed(CONFIG, {}) == ExpertMask.keep_all(CONFIG) == ExpertMask.from_removed(CONFIG, {0: []})
    )


def test_masks_are_immutable_and_own_their_memory():
    keep_REE = torch.ones(R, E, E, dtype=torch.bool)
    mask = ExpertMask(keep_REE)
    keep_REE[0] = False
    assert mask.num_removed == 0
    soft = torch.ones(R, E, E)
    mask = ExpertMask(soft)
    soft.zero_()
    assert mask.num_removed == 0
    m, n = mask_keeping(frozenset({(0, 1)})), mask_keeping(frozenset({(0, 2)}))
    before = m.keep_REE.clone()
    _ = (m & n, m | n, m - n, ~m)
    assert torch.equal(m.keep_REE, before)
    assert len({m, n, m}) == 2


def test_random_masks():
    for total in (0, 1, 7, 18):
        assert ExpertMask.random(CONFIG, total, seed=3).num_removed == total
    assert ExpertMask.random(CONFIG, [2, 5], seed=3).removed_per_group == [2, 5]
    assert ExpertMask.random(CONFIG, 7, seed=3) == ExpertMask.random(CONFIG, 7, seed=3)
    assert ExpertMask.random(CONFIG, 7, seed=3) != ExpertMask.random(CONFIG, 7, seed=4)
    counts = sum(1 - ExpertMask.random(CONFIG, 6, seed).keep_REE.float() for seed in range(600))
    # every expert is drawn with probability 1/3: 200 of 600, standard deviation 11.5
    assert (counts - 200).abs().max() < 5 * 11.5
    assert ExpertMask.random(CONFIG, 7, seed=3).provenance["seed"] == 3


def test_masks_from_scores():
    scores_REE = torch.arange(18.0).view(R, E, E)
    mask = ExpertMask.from_scores(scores_REE, 10.0)
    assert kept_by(mask) == frozenset((n // 9, n % 9) for n in range(11)), "greater than the threshold is removed"
    scores_REE[0, 0, 0] = float("nan")
    assert ExpertMask.from_scores(scores_REE, -1.0).keep_REE.sum() == 1, "no score, no removal"
    assert ExpertMask.from_scores(scores_REE, float("inf")).num_removed == 0


def test_provenance_tells_the_history():
    m = ExpertMask.random(CONFIG, 3, seed=1, provenance={"domain": "french"})
    n = ExpertMask.from_scores(torch.rand(R, E, E), 0.5)
    assert m.provenance["made_by"] == "random" and m.provenance["domain"] == "french"
    combined = (m & ~n).provenance
    assert combined["made_by"] == "and" and combined["of"][0] == m.provenance
    assert combined["of"][1] == {"made_by": "not", "of": [n.provenance]}
    given_notes = {"a": 1}
    kept = ExpertMask(m.keep_REE, given_notes)
    given_notes["a"] = 2
    assert kept.provenance == {"a": 1}


def test_fingerprints_combine():
    keep_REE = torch.ones(R, E, E, dtype=torch.bool)
    anyones, ours, theirs = (ExpertMask(keep_REE, fingerprint=mark) for mark in (None, "ours", "theirs"))
    assert (anyones & ours).fingerprint == "ours" == (ours | anyones).fingerprint == (~ours).fingerprint
    assert (anyones & anyones).fingerprint is None
    with pytest.raises(CheckpointError, match=r"masks of different models .*ours and theirs"):
        _ = ours & theirs
    with pytest.raises(ConfigError, match=r"shapes \(2, 3, 3\) and \(2, 4, 4\)"):
        _ = ours & ExpertMask(torch.ones(2, 4, 4, dtype=torch.bool))
    assert ours != "ours" and (ours == 1) is False
