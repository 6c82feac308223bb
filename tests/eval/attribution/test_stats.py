from dataclasses import replace

import pytest
import torch

from monet.errors import CheckpointError
from monet.eval.attribution.stats import ExpertStatistics, collect
from monet.masks.expert_mask import ExpertMask
from tests.tolerances import assert_close


def brute_force(model, data) -> torch.Tensor:
    """Loop over labels, single sequences, tokens, heads and explicit experts, in float64."""
    E, groups = model.config.moe_experts, len(model.routers())
    sums = torch.zeros(len(data.labels), groups, E, E, dtype=torch.float64)
    for sequence, label in zip(data.sequences, data.label_of, strict=True):
        with torch.no_grad():
            probs = model(torch.tensor([sequence]), output_router_probs=True).router_probs
        for group, (g1, g2) in enumerate([pair for pair in probs if pair is not None]):
            g1, g2 = g1[0].double(), g2[0].double()
            for t in range(g1.shape[0]):
                for h in range(g1.shape[1]):
                    for i in range(E):
                        for j in range(E):
                            sums[label, group, i, j] += g1[t, h, i] * g2[t, h, j]
    return sums


def test_sums_equal_a_loop_over_explicit_experts(random_model, random_data):
    statistics = collect(random_model, random_data, batch_size=4, progress=False)
    assert statistics.sums_CREE.shape == (3, 2, 5, 5)
    assert statistics.sums_CREE.dtype == torch.float64
    assert_close("sums", statistics.sums_CREE, brute_force(random_model, random_data), torch.float32)
    lengths = torch.tensor([len(sequence) for sequence in random_data.sequences])
    for label in range(3):
        chosen = torch.tensor(random_data.label_of) == label
        assert statistics.tokens_C[label] == lengths[chosen].sum()
        assert statistics.windows_C[label] == statistics.documents_C[label] == chosen.sum()


def test_means_sum_to_the_number_of_heads(random_model, random_data):
    means = collect(random_model, random_data, progress=False).means()
    assert_close("sum of means", means.sum(dim=(2, 3)), torch.full((3, 2), 3.0), torch.float32)


@pytest.mark.parametrize("batch_size", [1, 5, 17])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_size_and_padding_side_do_not_matter(random_model, random_data, batch_size, side):
    whole = collect(random_model, random_data, batch_size=8, progress=False)
    other = collect(random_model, replace(random_data, padding_side=side), batch_size=batch_size, progress=False)
    assert_close("sums", other.sums_CREE, whole.sums_CREE, torch.float32)
    assert torch.equal(other.tokens_C, whole.tokens_C)


def test_pads_are_not_counted_whatever_their_id(random_model, random_data):
    plain = collect(random_model, random_data, batch_size=6, progress=False)
    other = collect(random_model, replace(random_data, pad_id=7), batch_size=6, progress=False)
    assert torch.equal(plain.sums_CREE, other.sums_CREE)


def test_two_halves_equal_one_pass(random_model, random_data):
    halves = [
        collect(
            random_model,
            replace(random_data, sequences=random_data.sequences[cut], label_of=random_data.label_of[cut]),
            progress=False,
        )
        for cut in (slice(0, 8), slice(8, None))
    ]
    merged = halves[0].merge(halves[1])
    whole = collect(random_model, random_data, progress=False)
    assert_close("sums", merged.sums_CREE, whole.sums_CREE, torch.float32)
    for name in ("tokens_C", "windows_C", "documents_C"):
        assert torch.equal(getattr(merged, name), getattr(whole, name)), name
    assert len(merged.provenance["parts"]) == 2


def test_the_same_part_is_not_added_twice(random_model, random_data):
    statistics = collect(random_model, random_data, progress=False)
    with pytest.raises(CheckpointError, match="count twice"):
        statistics.merge(statistics)


def test_collecting_leaves_the_model_as_it_was(random_model, random_data):
    random_model.train()
    before = {name: tensor.clone() for name, tensor in random_model.state_dict().items()}
    collect(random_model, random_data, progress=False)
    assert random_model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in random_model.state_dict().items())
    assert not any(router._forward_hooks for router in random_model.routers())


def test_autocast_of_the_caller_does_not_reach_the_sums(random_model, random_data):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = collect(random_model, random_data, progress=False)
    # Each g sums to one in float32, so a product in bfloat16 would show as a total that is off by about 1e-3.
    totals = statistics.means().sum(dim=(2, 3))
    assert_close("sum of means", totals, torch.full((3, 2), 3.0), torch.float32)


def test_saved_statistics_load_the_same(random_model, random_data, tmp_path):
    statistics = collect(random_model, random_data, progress=False)
    statistics.save(tmp_path / "s.safetensors")
    loaded = ExpertStatistics.load(tmp_path / "s.safetensors", model=random_model)
    for name in ("sums_CREE", "tokens_C", "windows_C", "documents_C"):
        assert torch.equal(getattr(loaded, name), getattr(statistics, name)), name
    assert (loaded.labels, loaded.provenance) == (statistics.labels, statistics.provenance)
    assert loaded.model_fingerprint == random_model.fingerprint()


def test_a_stored_mask_is_on_record(random_model, random_data):
    free = collect(random_model, random_data, progress=False)
    random_model.set_expert_mask(ExpertMask.random(random_model.config, 20, seed=0))
    masked = collect(random_model, random_data, progress=False)
    assert free.provenance["parts"][0]["stored_mask"] == "none" != masked.provenance["parts"][0]["stored_mask"]
    # The first router comes before all experts, the second after some of them.
    assert torch.equal(free.sums_CREE[:, 0], masked.sums_CREE[:, 0])
    assert not torch.equal(free.sums_CREE[:, 1], masked.sums_CREE[:, 1])


def test_the_planted_expert_is_the_only_one_active(planted_model, planted_data):
    means = collect(planted_model, planted_data, progress=False).means()
    expected = torch.zeros(3, 1, 16, 16)
    for label in range(3):
        expected[label, 0, label, label] = 2.0
    assert_close("means", means, expected, torch.float32)
