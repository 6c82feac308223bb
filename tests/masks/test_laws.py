"""Masks on whole models: the effect of a removal, how it is applied, and that it leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from monet import ExpertMask, MonetForCausalLM, MonetModel
from monet.errors import CheckpointError, ConfigError
from tests.kernels.explicit import loop_over_experts
from tests.model.tiny import FORMS, states_equal, tiny_model, tokens
from tests.tolerances import assert_close, relative_rms

GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}

both_forms = pytest.mark.parametrize("form", FORMS)


def random_mask(model: MonetForCausalLM, seed: int = 0, share: float = 0.5) -> ExpertMask:
    """Removes this share of the experts of every group; the effect on logits is much larger than rounding."""
    config = model.config
    return ExpertMask.random(config, [int(share * config.moe_experts**2)] * config.num_routing_groups, seed)


def soft_mask(model: MonetForCausalLM, seed: int = 0) -> ExpertMask:
    generator = torch.Generator().manual_seed(seed)
    E = model.config.moe_experts
    return ExpertMask(torch.rand(model.config.num_routing_groups, E, E, generator=generator))


def logits(model: MonetForCausalLM, ids: Tensor | None = None, **options) -> Tensor:
    with torch.no_grad():
        return model(tokens() if ids is None else ids, **options).logits


def explicit_logits(model: MonetForCausalLM, ids: Tensor, mask: ExpertMask | None) -> Tensor:
    """The model in float64 with every layer's experts replaced by the loop over single experts."""
    model = copy.deepcopy(model).double()
    for index, layer in enumerate(model.model.layers):
        keep_EE = None if mask is None else mask.keep_REE[index // model.config.moe_groups].double()

        def forward(x_BTD, g1_BTHE, g2_BTHE, keep=None, experts=layer.moe, keep_EE=keep_EE):
            g1_THE, g2_THE = g1_BTHE.flatten(0, 1), g2_BTHE.flatten(0, 1)
            keep_TEE = None if keep_EE is None else keep_EE.expand(len(g1_THE), -1, -1)
            weights = experts.state_dict()
            form = model.config.moe_decompose
            return loop_over_experts(form, weights, x_BTD.flatten(0, 1), g1_THE, g2_THE, keep_TEE).view(x_BTD.shape)

        layer.moe.forward = forward
    return logits(model, ids)


@pytest.mark.parametrize("kind", ["none", "hard", "soft", "nothing kept"])
@both_forms
def test_a_masked_model_is_one_without_those_experts(form, kind):
    """Experts are removed in every layer of their group, and in no layer of another group."""
    model = tiny_model(form, moe_experts=5, num_hidden_layers=3)
    mask = {
        "none": None,
        "hard": random_mask(model),
        "soft": soft_mask(model),
        "nothing kept": ExpertMask(torch.zeros(2, 5, 5, dtype=torch.bool)),
    }[kind]
    got = logits(model.double(), expert_mask=mask)
    assert relative_rms(got, explicit_logits(model, tokens(), mask)) < 1e-12


@both_forms
def test_masks_of_groups_are_kept_apart(form):
    model = tiny_model(form)
    removed = torch.arange(18)
    only = [ExpertMask.from_removed(model.config, {group: removed}) for group in (0, 1)]
    states = []
    model.model.layers[2].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    plain, first, second = (logits(model, expert_mask=mask) for mask in (None, *only))
    assert torch.equal(states[0], states[2]), "the second group's mask changed the first group's layers"
    assert not torch.equal(states[0], states[1])
    assert relative_rms(first, plain) > 1e-2 and relative_rms(second, plain) > 1e-2


@both_forms
def test_an_all_keep_mask_is_bitwise_no_mask(form):
    model = tiny_model(form)
    plain = logits(model)
    hard = ExpertMask.keep_all(model.config)
    soft = ExpertMask(torch.ones_like(hard.keep_REE, dtype=torch.float32))
    for mask in (hard, soft, [hard, hard], [None, soft], [None, None]):
        assert torch.equal(logits(model, expert_mask=mask), plain)
    with hard.applied_to(model), soft.applied_to(model):
        assert torch.equal(logits(model), plain)
    model.set_expert_mask(hard)
    assert torch.equal(logits(model), plain)


@both_forms
def test_an_unmasked_row_of_a_masked_batch_is_bitwise_unmasked(form):
    model, ids = tiny_model(form), tokens(3)
    plain = logits(model, ids)
    for exempt in (None, ExpertMask.keep_all(model.config)):
        got = logits(model, ids, expert_mask=[random_mask(model), exempt, random_mask(model, 1)])
        assert torch.equal(got[1], plain[1])
        assert relative_rms(got[[0, 2]], plain[[0, 2]]) > 1e-2


@both_forms
def test_all_keep_leaves_training_bitwise(form):
    runs = []
    for mask in (None, "all"):
        model = tiny_model(form).train()
        keep = ExpertMask.keep_all(model.config) if mask else None
        model(tokens(), labels=tokens(), expert_mask=keep).loss.backward()
        runs.append(model)
    for (name, ours), (_, theirs) in zip(runs[0].named_parameters(), runs[1].named_parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert states_equal(*runs)


@both_forms
def test_removal_is_undone_bitwise(form):
    model = tiny_model(form)
    pristine, plain = copy.deepcopy(model), logits(model)
    with random_mask(model).applied_to(model) as inside:
        assert inside is model
        assert relative_rms(logits(model), plain) > 1e-2
    assert torch.equal(logits(model), plain)
    with pytest.raises(RuntimeError, match="broken"), random_mask(model).applied_to(model):
        raise RuntimeError("broken")
    with pytest.raises(ValueError, match="exactly one"), random_mask(model).applied_to(model):
        model()
    logits(model, expert_mask=random_mask(model))
    model.set_expert_mask(random_mask(model))
    model.set_expert_mask(None)
    assert torch.equal(logits(model), plain)
    assert states_equal(model, pristine)


@both_forms
def test_contexts_nest(form):
    model = tiny_model(form)
    outer, inner = random_mask(model, 1, 0.3), random_mask(model, 2, 0.3)
    plain = logits(model)
    with outer.applied_to(model):
        once = logits(model)
        with inner.applied_to(model):
            both = logits(model)
        assert torch.equal(logits(model), once)
    assert torch.equal(logits(model), plain)
    assert torch.equal(once, logits(model, expert_mask=outer))
    assert torch.equal(both, logits(model, expert_mask=outer & inner))
    assert not torch.equal(both, once)


def test_contexts_may_end_in_any_order():
    model = tiny_model()
    first, second = random_mask(model, 1), random_mask(model, 2)
    plain = logits(model)
    contexts = [mask.applied_to(model) for mask in (first, second)]
    for context in contexts:
        context.__enter__()
    contexts[0].__exit__(None, None, None)
    assert torch.equal(logits(model), logits(model, expert_mask=second))
    contexts[1].__exit__(None, None, None)
    assert torch.equal(logits(model), plain)


@both_forms
def test_all_ways_of_applying_combine_by_the_minimum(form):
    model = tiny_model(form)
    stored, applied, called = soft_mask(model, 1), random_mask(model, 2, 0.2), soft_mask(model, 3)
    wanted = logits(model, expert_mask=stored & applied & called)
    assert torch.equal((stored & called).keep_REE, torch.minimum(stored.keep_REE, called.keep_REE))
    model.set_expert_mask(stored)
    assert model.expert_mask == stored
    with applied.applied_to(model):
        assert torch.equal(logits(model, expert_mask=called), wanted)
        rows = logits(model, expert_mask=[called, None])
    assert_close("first row", rows[0], wanted[0])
    model.set_expert_mask(None)
    assert_close("second row", rows[1], logits(model, expert_mask=stored & applied)[1])


@both_forms
def test_a_mask_a_sequence_equals_one_by_one(form):
    model, ids = tiny_model(form), tokens(4)
    masks = [random_mask(model), None, soft_mask(model), random_mask(model, 5)]
    together = logits(model, ids, expert_mask=masks)
    for b, mask in enumerate(masks):
        assert_close(f"row {b}", together[b], logits(model, ids[b : b + 1], expert_mask=mask)[0], torch.float32)


def test_masks_of_one_call_do_not_leak_into_the_next():
    """Calls that differ only in one mask must not share cached results."""
    model = tiny_model()
    first, second = random_mask(model, 1), random_mask(model, 2)
    wanted = {name: logits(model, expert_mask=mask) for name, mask in (("1", first), ("2", second), ("-", None))}
    for name, mask in (("1", first), ("2", second), ("-", None), ("2", second), ("1", first)):
        assert torch.equal(logits(model, expert_mask=mask), wanted[name])
    rows = [(first, second), (second, first), (None, first), (first, None), (None, second)]
    for pair in [*rows, *reversed(rows)]:
        got = logits(model, expert_mask=list(pair))
        for b, mask in enumerate(pair):
            name = "-" if mask is None else "1" if mask is first else "2"
            assert_close("row", got[b], wanted[name][b])
    with first.applied_to(model):
        assert torch.equal(logits(model), wanted["1"])
        assert torch.equal(logits(model, expert_mask=second), logits(model, expert_mask=first & second))
    assert torch.equal(logits(model), wanted["-"])


def greedy_by_hand(model, ids: Tensor, mask) -> Tensor:
    for _ in range(5):
        last = logits(model, ids, use_cache=False, expert_mask=mask)[:, -1]
        last[:, 2] = -torch.inf
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], 1)
    return ids


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@both_forms
def test_masks_hold_through_generation(form, options):
    model, ids = tiny_model(form), tokens()
    mask, other = random_mask(model), random_mask(model, 1)
    attention_mask = torch.ones_like(ids)
    wanted = greedy_by_hand(model, ids, mask)
    assert not torch.equal(wanted, greedy_by_hand(model, ids, None))
    with mask.applied_to(model):
        assert torch.equal(model.generate(ids, attention_mask=attention_mask, **GREEDY, **options), wanted)
    got = model.generate(ids, attention_mask=attention_mask, expert_mask=mask, **GREEDY, **options)
    assert torch.equal(got, wanted)
    rows = model.generate(ids, attention_mask=attention_mask, expert_mask=[other, None], **GREEDY, **options)
    assert torch.equal(rows, greedy_by_hand(model, ids, [other, None]))


def test_beam_search_keeps_each_sequences_mask():
    model, ids = tiny_model(), tokens(3)
    masks = [random_mask(model), None, random_mask(model, 1)]
    options = {**GREEDY, "num_beams": 4, "num_return_sequences": 2}
    together = model.generate(ids, attention_mask=torch.ones_like(ids), expert_mask=masks, **options)
    for b, mask in enumerate(masks):
        alone = model.generate(ids[b : b + 1], attention_mask=torch.ones(1, 9).long(), expert_mask=mask, **options)
        assert torch.equal(together[2 * b : 2 * b + 2], alone)


def test_several_samples_a_sequence_keep_its_mask():
    model, ids = tiny_model(), tokens()
    seen = []
    hook = lambda module, args, kwargs: seen.append(kwargs["keep"].index_T.tolist())  # noqa: E731
    model.model.layers[0].moe.register_forward_pre_hook(hook, with_kwargs=True)
    model.generate(
        ids, attention_mask=torch.ones_like(ids), expert_mask=[random_mask(model), random_mask(model, 1)],
        do_sample=True, num_return_sequences=3, max_new_tokens=2, pad_token_id=0,
    )  # fmt: skip
    assert seen[-1] == [0, 0, 0, 1, 1, 1]


def test_masks_change_no_routing():
    """Nothing is renormalised: probabilities of the first group equal those of the unmasked model."""
    model = tiny_model()
    plain = model(tokens(), output_router_probs=True).router_probs[0]
    masked = model(tokens(), output_router_probs=True, expert_mask=random_mask(model)).router_probs[0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain, masked, strict=True))


def test_gradients_flow_through_a_mask():
    model = tiny_model(num_hidden_layers=1).train()
    mask = ExpertMask.from_removed(model.config, {0: range(0, 6)})  # expert ids 0..5: all pairs with i = 0
    model(tokens(), labels=tokens(), expert_mask=mask).loss.backward()
    experts = model.model.layers[0].moe
    assert experts.b1.grad[0].eq(0).all() and experts.b1.grad[1:].any()
    assert experts.u1.weight.grad[:2].eq(0).all() and experts.u1.weight.grad[2:].any()
    assert experts.b2.grad.any(1).all()


def test_the_base_model_takes_masks_too():
    model = tiny_model()
    mask = random_mask(model)
    wanted = logits(model, expert_mask=mask)
    with mask.applied_to(model.model):
        assert torch.equal(logits(model), wanted)
    assert torch.equal(model.lm_head(model.model(tokens(), expert_mask=mask).last_hidden_state), wanted)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_stored_mask_survives_saving(tmp_path, kind):
    model = tiny_model()
    plain = logits(model)
    model.set_expert_mask(random_mask(model) if kind == "hard" else soft_mask(model))
    masked = logits(model)
    model.save_pretrained(tmp_path)
    for loaded in (MonetForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert loaded.expert_mask == model.expert_mask
        assert torch.equal(logits(loaded), masked)
    assert MonetModel.from_pretrained(tmp_path).expert_mask == model.expert_mask
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert MonetForCausalLM.from_pretrained(tmp_path, dtype=dtype).expert_mask == model.expert_mask
    loaded.set_expert_mask(None)
    assert torch.equal(logits(loaded), plain)
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / "expert_mask.safetensors").exists(), "a stale mask would mask the next load"
    assert MonetForCausalLM.from_pretrained(tmp_path).expert_mask is None


def test_applied_masks_are_not_saved(tmp_path):
    model = tiny_model()
    with random_mask(model).applied_to(model):
        model.save_pretrained(tmp_path)
    loaded = MonetForCausalLM.from_pretrained(tmp_path)
    assert loaded.expert_mask is None and torch.equal(logits(loaded), logits(model))


def test_a_stored_mask_stays_while_the_model_learns_on(tmp_path):
    """A mask that was made for this model stays part of it while its weights change."""
    model = tiny_model()
    mask = ExpertMask(random_mask(model).keep_REE, fingerprint=model.fingerprint())
    model.set_expert_mask(mask)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    assert model.fingerprint() != mask.fingerprint
    model.save_pretrained(tmp_path)
    loaded = MonetForCausalLM.from_pretrained(tmp_path)
    assert loaded.expert_mask == mask and torch.equal(logits(loaded), logits(model))


def test_a_copied_model_has_its_own_masks():
    model = tiny_model()
    model.set_expert_mask(random_mask(model))
    copied = copy.deepcopy(model)
    copied.set_expert_mask(None)
    assert model.expert_mask is not None
    assert not torch.equal(logits(model), logits(copied))


def test_what_is_refused():
    model, other = tiny_model(), tiny_model(moe_experts=5)
    wrong = random_mask(other)
    foreign = ExpertMask(random_mask(model).keep_REE, fingerprint=tiny_model(seed=1).fingerprint())
    for mask, message in (
        (wrong, r"shape \(2, 5, 5\) does not fit .* \(2, 6, 6\)"),
        (foreign, "another model"),
    ):
        with pytest.raises(CheckpointError, match=message), mask.applied_to(model):
            pass
        with pytest.raises(CheckpointError, match=message):
            model.set_expert_mask(mask)
        with pytest.raises(CheckpointError, match=message):
            model(tokens(), expert_mask=mask)
        with pytest.raises(CheckpointError, match=message):
            model(tokens(), expert_mask=[None, mask])
        with pytest.raises(CheckpointError, match=message):
            model.generate(tokens(), expert_mask=mask, **GREEDY)
    for masks in ([random_mask(model)] * 3, [random_mask(model)], []):
        with pytest.raises(ConfigError, match=f"{len(masks)} masks for a batch of 2 sequences"):
            model(tokens(), expert_mask=masks)
    assert torch.equal(logits(model), logits(tiny_model())), "a refused mask leaves no trace"
