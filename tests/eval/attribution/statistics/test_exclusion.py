"""Boundary tokens are not counted: statistics are over the other tokens, and record what was left out."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.attribution.stats import Wanted, collect
from monet.eval.baselines.neurons import activities
from monet.eval.core.inputs import LabelledSequences
from tests.eval.conftest import LABELS

WANTED = Wanted(firing=True, maxima=True)
BOS, EOS = 22, 23


@pytest.fixture
def with_boundaries(random_data):
    """Sequences with a beginning token, an end token, and another end token inside."""
    plain = [[min(token, 21) for token in row] for row in random_data.sequences]
    rows = [[BOS, *row[:5], EOS, *row[5:], EOS] for row in plain]
    return LabelledSequences(LABELS, rows, random_data.label_of)


def explicit(model, data, counted):
    """Sums of expert weights over the tokens that `counted` takes, one sequence at a time."""
    sums_CREE = torch.zeros(3, len(model.routers()), 5, 5, dtype=torch.float64)
    for row, label in zip(data.sequences, data.label_of, strict=True):
        gates = []
        hooks = [
            router.register_forward_hook(lambda _, __, out, gates=gates: gates.append(out))
            for router in model.routers()
        ]
        with torch.no_grad():
            model(torch.tensor([row]))
        [hook.remove() for hook in hooks]
        for group, out in enumerate(gates):
            for place, token in enumerate(row):
                if counted(place, token):
                    g1_HE, g2_HE = out.g1_BTHE[0, place].double(), out.g2_BTHE[0, place].double()
                    sums_CREE[label, group] += torch.einsum("hi,hj->ij", g1_HE, g2_HE)
    return sums_CREE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_is_left_out_is_in_no_sum(random_model, with_boundaries, side, batch_size):
    data = replace(with_boundaries, padding_side=side)
    exclusion = Exclusion((BOS, EOS), first=3)
    found = collect(random_model, data, batch_size=batch_size, wanted=WANTED, exclusion=exclusion, progress=False)
    wanted = explicit(random_model, data, lambda place, token: place >= 3 and token not in (BOS, EOS))
    torch.testing.assert_close(found.sums_CREE, wanted, rtol=1e-5, atol=1e-6)
    counted = sum(place >= 3 and token not in (BOS, EOS) for row in data.sequences for place, token in enumerate(row))
    total = sum(map(len, data.sequences))
    assert int(found.tokens_C.sum()) == counted
    (part,) = found.provenance["parts"]
    assert part["excluded"] == {"ids": [BOS, EOS], "first": 3, "tokens": total - counted}
    assert found.maxima is not None and int(found.maxima.place_REEP[..., 3].max()) > 3
    assert not bool((found.maxima.place_REEP[..., 3][found.maxima.weight_REE > 0] < 3).any())  # place in the sequence


def test_boundaries_are_left_out_unless_told_otherwise(random_model, with_boundaries):
    random_model.config.bos_token_id, random_model.config.eos_token_id = BOS, EOS
    found = collect(random_model, with_boundaries, progress=False)
    wanted = explicit(random_model, with_boundaries, lambda _, token: token not in (BOS, EOS))
    torch.testing.assert_close(found.sums_CREE, wanted, rtol=1e-5, atol=1e-6)
    assert found.provenance["parts"][0]["excluded"]["ids"] == [BOS, EOS]


def test_all_tokens_count_on_request(random_model, with_boundaries):
    random_model.config.bos_token_id, random_model.config.eos_token_id = BOS, EOS
    found = collect(random_model, with_boundaries, exclusion=Exclusion(), progress=False)
    assert int(found.tokens_C.sum()) == sum(map(len, with_boundaries.sequences))
    torch.testing.assert_close(
        found.sums_CREE, explicit(random_model, with_boundaries, lambda *_: True), rtol=1e-5, atol=1e-6
    )


def test_neurons_of_a_dense_model_are_chosen_on_the_same_tokens(llama, with_boundaries):
    llama.config.bos_token_id, llama.config.eos_token_id = BOS, EOS
    data = replace(with_boundaries, padding_side="left")
    sums_CLF, tokens_C = torch.zeros(3, 2, 20, dtype=torch.float64), torch.zeros(3)
    for row, label in zip(data.sequences, data.label_of, strict=True):
        counted_T = torch.tensor([token not in (BOS, EOS) for token in row])
        tokens_C[label] += counted_T.sum()
        for number, layer in enumerate(llama.model.layers):

            def add(_, inputs, at=(label, number), counted_T=counted_T):
                sums_CLF[at] += inputs[0][0, counted_T].abs().sum(0)

            hook = layer.mlp.down_proj.register_forward_pre_hook(add)
            with torch.no_grad():
                llama(torch.tensor([row]))
            hook.remove()
    found_CLF = activities(llama, data, batch_size=4, progress=False)
    torch.testing.assert_close(found_CLF, sums_CLF / tokens_C[:, None, None], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found_CLF, activities(llama, data, exclusion=Exclusion(), progress=False), rtol=1e-3)


def test_the_tokenizer_says_what_is_special(random_model):
    tokenizer = SimpleNamespace(bos_token_id=5, eos_token_id=7, pad_token_id=None)
    assert Exclusion.chosen(random_model, tokenizer) == Exclusion((5, 7))
    assert Exclusion.chosen(random_model, tokenizer, tokens=[3, 5], first=2) == Exclusion((3, 5, 7), 2)
    assert Exclusion.chosen(random_model, tokenizer, "none", tokens=[3]) == Exclusion((3,))
    config = SimpleNamespace(bos_token_id=1, eos_token_id=[2, 9], pad_token_id=-1)
    assert Exclusion.chosen(SimpleNamespace(config=config), None) == Exclusion((1, 2, 9))


def test_statistics_that_leave_out_different_tokens_do_not_add_up(random_model, with_boundaries):
    first, second = (with_boundaries.shard(index, 2) for index in (0, 1))
    mine = collect(random_model, first, exclusion=Exclusion((EOS,)), progress=False)
    with pytest.raises(CheckpointError, match="leave out different tokens"):
        mine.merge(collect(random_model, second, progress=False))
    both = mine.merge(collect(random_model, second, exclusion=Exclusion((EOS,)), progress=False))
    whole = collect(random_model, with_boundaries, exclusion=Exclusion((EOS,)), progress=False)
    torch.testing.assert_close(both.sums_CREE, whole.sums_CREE, rtol=1e-5, atol=1e-6)


def test_text_of_boundaries_only_is_refused(random_model):
    data = LabelledSequences(LABELS, [[EOS, EOS]], [0])
    with pytest.raises(DataError, match="no text to collect statistics from"):
        collect(random_model, data, exclusion=Exclusion((EOS,)), progress=False)
    with pytest.raises(ConfigError, match="exclude_first -1"):
        Exclusion(first=-1)
