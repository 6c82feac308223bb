"""What needs the model, compared with direct calls of it."""

from __future__ import annotations

import pytest
import torch

from monet.eval.inspection.weights import unit_weights
from monet.eval.view.live import Live
from monet.eval.view.masks import Collection
from tests.eval.index.conftest import E, all_weights
from tests.eval.view.conftest import busiest


@pytest.fixture
def live(store, view_model):
    return Live(view_model, store)


def masked(store, **parts):
    return store.masks.mask(store.masks.resolved(Collection(**parts), store.browser))


def test_weights_fit_the_contexts(live, store):
    unit = store.unit(busiest(store))
    content = store.expert(unit)
    contexts = [*content["contexts"], *content["samples"]]
    for context, weights in zip(contexts, live.weights(unit), strict=True):
        assert len(weights) == len(context["tokens"])
        assert weights[context["position"]] == pytest.approx(context["weight"], rel=1e-3)
        window = store.index.windows[context["window"]]
        whole = unit_weights(live.model, window, [unit])[:, 0]
        assert weights == pytest.approx(whole[context["start"] :][: len(weights)].tolist(), rel=1e-3)


def test_a_prompt_lists_the_experts_with_the_largest_weights(live, store):
    class Text:
        sequences = [store.index.texts.encode("hello")]

    found = live.prompt("hello")
    weights = all_weights(live.model, Text)
    for one in found["experts"]:
        unit = store.unit(one["name"])
        wanted = weights[unit.group][0][:, unit.number]
        assert one["weights"] == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-6)
    largest = max(float(few[0][:, : E * E].max()) for few in weights.values())
    assert max(found["experts"][0]["weights"]) == pytest.approx(largest, rel=1e-3)
    of_group = live.prompt("hello", 1)
    assert {one["group"] for one in of_group["experts"]} == {1}
    for token, entries in enumerate(of_group["of_token"]):
        best = weights[1][0][token, : E * E].topk(len(entries)).values
        assert [weight for _, weight in entries] == pytest.approx(best.tolist(), rel=1e-3)


def greedy(model, ids, count):
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_continuations_equal_those_of_each_side(live, store):
    mask = masked(store, add=["0:i1", "0:j2", "1:i3"])
    ids = store.index.texts.encode("abc")
    (*_, last) = live.continuation("abc", mask, 8, 0.0, 0)
    plain = greedy(live.model, ids, 8)
    with mask.applied_to(live.model):
        removed = greedy(live.model, ids, 8)
    assert plain != removed
    assert last["text"] == ["".join(store.index.texts.texts(side[3:])) for side in (plain, removed)]


def test_the_same_noise_on_both_sides(live, store):
    steps = list(live.continuation("abc", masked(store), 10, 1.0, 3))
    assert all(one == other for one, other in (step["text"] for step in steps))
    again = list(live.continuation("abc", masked(store), 10, 1.0, 3))
    assert steps == again != list(live.continuation("abc", masked(store), 10, 1.0, 4))


def test_a_mask_is_gone_after_the_comparison(live, store):
    before = live.prompt("hello")
    assert max(live.effect("hello", masked(store, add=["0:i1", "1:i1"]))["divergence"]) > 0
    assert live.prompt("hello") == before


def test_promoted_tokens(live, store):
    unit = store.unit(busiest(store))
    for how in ("static", "measured"):
        found = live.promoted(unit, how)
        effects = [effect for _, effect in found["promoted"]]
        assert effects == sorted(effects, reverse=True) and found["suppressed"][0][1] <= effects[-1]
