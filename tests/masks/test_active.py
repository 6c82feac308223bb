"""Applied masks belong to one thread, are not copied, and work with tracing and inference mode."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from monet import ExpertMask, MonetForCausalLM
from monet.errors import CheckpointError, ConfigError
from tests.model.tiny import FORMS, tiny_model, tokens

GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def logits(model, **options):
    with torch.no_grad():
        return model(tokens(), use_cache=False, **options).logits


def mask_of(model, seed: int = 0) -> ExpertMask:
    return ExpertMask.random(model.config, 30, seed=seed)


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_a_context_holds_in_its_own_thread():
    model = tiny_model()
    mask, plain = mask_of(model), logits(model)
    masked = logits(model, expert_mask=mask)
    with mask.applied_to(model):
        assert torch.equal(logits(model), masked)
        assert torch.equal(in_a_thread(lambda: logits(model)), plain)
        context = contextvars.copy_context()
        assert torch.equal(in_a_thread(lambda: context.run(logits, model)), masked)
    assert torch.equal(logits(model), plain)


def test_a_block_that_ends_in_another_thread_ends_everywhere():
    """An example is the block of a generator that another thread closes."""
    model = tiny_model()
    plain = logits(model)

    def masked():
        with mask_of(model).applied_to(model):
            yield

    generator = masked()
    next(generator)
    assert not torch.equal(logits(model), plain)
    in_a_thread(generator.close)
    assert torch.equal(logits(model), plain)
    assert not model.model.active_masks.applied and not model.model.active_masks._applied_by_all_threads


def test_two_threads_with_masks_of_their_own():
    model = tiny_model()
    masks = [mask_of(model, seed) for seed in (0, 1)]
    wanted = [logits(model, expert_mask=mask) for mask in masks]
    barrier, wrong = threading.Barrier(2), []

    def work(number: int) -> None:
        with masks[number].applied_to(model):
            barrier.wait()
            wrong.extend(number for _ in range(20) if not torch.equal(logits(model), wanted[number]))
            barrier.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_replacing_the_kept_weights_does_not_mix_masks():
    """Another thread may replace the kept weights between the check and the read."""
    model = tiny_model()
    first, second = mask_of(model), mask_of(model, 1)
    masks = model.model.active_masks
    for mask in (first, second):
        masks.resolve(model, mask, 2, 9, torch.device("cpu"))
    kept_second = masks.remembered

    class Sly(type(masks)):
        """Returns one entry at the first read and another entry at all later reads."""

        looks = 0

        @property
        def remembered(self):
            Sly.looks += 1
            return kept_second if Sly.looks == 1 else kept_first

        @remembered.setter
        def remembered(self, value):
            pass

    masks.resolve(model, first, 2, 9, torch.device("cpu"))
    kept_first = masks.remembered
    masks.__class__ = Sly
    keep = masks.resolve(model, second, 2, 9, torch.device("cpu"))
    for group in range(2):
        assert torch.equal(keep[group].weights_SEE[0], second.keep_REE[group])


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_take_the_stored_mask_and_no_applied_one(way):
    model = tiny_model()
    stored, applied = mask_of(model), mask_of(model, 1)
    model.set_expert_mask(stored)
    wanted = logits(model)
    with applied.applied_to(model):
        twin = way(model)
        assert torch.equal(logits(twin), wanted)
    assert torch.equal(logits(twin), wanted) and twin.expert_mask == stored


def test_replicas_for_other_threads_take_applied_masks():
    """DataParallel runs each replica in a thread that does not see this thread's context."""
    model = tiny_model()
    mask = mask_of(model)
    with mask.applied_to(model):
        replica = model.model._replicate_for_data_parallel()
    assert replica.active_masks.stored == mask and model.expert_mask is None


def test_continuous_batching_is_refused_under_a_context():
    model = tiny_model()
    with mask_of(model).applied_to(model), pytest.raises(ConfigError, match="separate thread"):
        model.generate_batch(inputs=[[3, 4, 5]])


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids, use_cache=False).logits


@pytest.mark.parametrize("trace", ["export", "fake"])
@pytest.mark.parametrize("form", FORMS)
def test_tracing_leaves_nothing_behind(form, trace):
    model, untouched = tiny_model(form), tiny_model(form)
    mask = mask_of(model)
    for one in (model, untouched):
        one.set_expert_mask(mask)
    with torch.no_grad():
        if trace == "export":
            program = torch.export.export(Wrapped(model).eval(), (tokens(),), strict=False)
            assert torch.allclose(program.module()(tokens()), logits(untouched), atol=1e-5)
        else:
            # masked mixing reads values, which fake tensors do not have
            refusal = contextlib.suppress(DataDependentOutputException)
            with refusal, FakeTensorMode(allow_non_fake_inputs=True) as mode:
                model(mode.from_tensor(tokens()), use_cache=False)
    assert torch.equal(logits(model), logits(untouched))


def test_a_masked_forward_in_inference_mode_leaves_training_possible():
    model = tiny_model()
    model.set_expert_mask(mask_of(model))
    with torch.inference_mode():
        model(tokens(), use_cache=False)
    model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    assert model.model.embed_tokens.weight.grad is not None


def uncached(model, ids, mask, steps: int = 6):
    for _ in range(steps):
        last = model(ids, use_cache=False, expert_mask=mask).logits[:, -1]
        last[:, 2] = -torch.inf
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], 1)
    return ids


def test_guidance_masks_both_forwards():
    model, ids = tiny_model(), tokens()
    mask = mask_of(model)
    options = {**GREEDY, "guidance_scale": 1.5, "attention_mask": torch.ones_like(ids)}
    with mask.applied_to(model):
        wanted = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, expert_mask=mask, **options), wanted)
    assert not torch.equal(model.generate(ids, **options), wanted)
    with pytest.raises(ConfigError, match="with guidance_scale pass one mask for all"):
        model.generate(ids, expert_mask=[mask, None], **options)


@pytest.mark.parametrize("kind", ["Monet", "LLaMA"])
def test_an_assistant_is_not_masked(kind):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, ids = tiny_model(), tokens(1)
    mask = mask_of(model)
    if kind == "Monet":
        assistant = tiny_model(seed=3, num_hidden_layers=2)
    else:
        sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
        assistant = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, bos_token_id=1, eos_token_id=2)).eval()
    got = model.generate(
        ids, attention_mask=torch.ones_like(ids), assistant_model=assistant, expert_mask=mask, **GREEDY
    )
    assert torch.equal(got, uncached(model, ids, mask))


@pytest.mark.parametrize("masked", [False, True])
def test_a_model_drafts_for_itself(masked):
    model, ids = tiny_model(), tokens(1)
    mask = mask_of(model) if masked else None
    for layers in (1, 2, 3):
        got = model.generate(
            ids, attention_mask=torch.ones_like(ids), assistant_early_exit=layers, expert_mask=mask, **GREEDY
        )
        assert torch.equal(got, uncached(model, ids, mask)) and model.config.num_hidden_layers == 4


def test_a_named_mask_must_be_there(tmp_path):
    model = tiny_model()
    model.set_expert_mask(mask_of(model))
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "expert_mask.safetensors").is_file()
    twin = MonetForCausalLM(copy.deepcopy(model.config)).eval()
    with pytest.raises(CheckpointError, match="names an expert mask, but this model was loaded or built without it"):
        twin(tokens())
    with pytest.raises(CheckpointError, match="names an expert mask"):
        twin.save_pretrained(tmp_path / "twin")
    twin.set_expert_mask(None)
    assert twin(tokens()).logits is not None
    mask_of(model, 1).save(tmp_path / "model" / "expert_mask.safetensors", model=model)
    with pytest.raises(CheckpointError, match="fetch both files from the same place"):
        MonetForCausalLM.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "expert_mask.safetensors").unlink()
    with pytest.raises(CheckpointError, match="which is missing; fetch it too"):
        MonetForCausalLM.from_pretrained(tmp_path / "model")
    model.set_expert_mask(None)
    model.save_pretrained(tmp_path / "model")
    assert MonetForCausalLM.from_pretrained(tmp_path / "model").expert_mask is None
    assert "expert_mask" not in (tmp_path / "model" / "config.json").read_text()
