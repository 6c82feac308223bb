"""torch.compile: one graph without breaks, and the same numbers."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from monet import ExpertMask
from monet.errors import CheckpointError
from tests.marks import nightly
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import relative_rms

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("form", FORMS)
def test_inference_is_one_graph(form):
    model = tiny_model(form)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        got = compiled(tokens(), use_cache=False).logits
        assert relative_rms(got, model(tokens(), use_cache=False).logits) < 1e-5


@pytest.mark.parametrize(
    ("form", "training"),
    [
        nightly("horizontal", False, id="horizontal-inference"),
        nightly("vertical", True, id="vertical-training"),
        nightly("horizontal", True, id="horizontal-training"),
        nightly("vertical", False, id="vertical-inference"),
    ],
)
def test_masks_of_every_kind_leave_one_graph(form, training):
    """fullgraph=True refuses a graph break, including in the first call with a mask."""
    model = tiny_model(form).train(training)
    hard, other = (ExpertMask.random(model.config, 20, seed, fingerprint=model.fingerprint()) for seed in (0, 1))
    soft = ExpertMask(0.5 + 0.5 * other.keep_REE.float())
    cases = [(hard, [], None), ([hard, None], [], None), (soft, [], None), (None, [hard, other], None),
             ([other, None], [hard], None), (hard, [soft], other), ([hard, other], [], soft)]  # fmt: skip
    for argument, contexts, stored in cases:
        torch._dynamo.reset()
        model.set_expert_mask(stored)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.set_grad_enabled(training), ExitStack() as stack:
            for mask in contexts:
                stack.enter_context(mask.applied_to(model))
            model.model.active_masks.remembered = None
            got = [compiled(tokens(), use_cache=False, expert_mask=argument).logits for _ in range(2)]
            wanted = model(tokens(), use_cache=False, expert_mask=argument).logits
            assert all(relative_rms(logits, wanted) < 1e-5 for logits in got), (argument, contexts, stored)


def test_a_mask_of_another_model_is_refused_in_a_compiled_model():
    model = tiny_model()
    mask = ExpertMask(ExpertMask.random(model.config, 20, 0).keep_REE, fingerprint="0" * 32)
    with pytest.raises(CheckpointError, match="made for another model"):
        torch.compile(model, backend="eager")(tokens(), expert_mask=mask)


@pytest.mark.parametrize("form", ["horizontal", nightly("vertical")])
def test_compiled_inference_on_the_cpu(form):
    model = tiny_model(form)
    compiled = torch.compile(model)
    mask = ExpertMask.random(model.config, 40, seed=0)
    with torch.no_grad():
        for options in ({}, {"expert_mask": mask}, {"expert_mask": [mask, None]}):
            wanted = model(tokens(), use_cache=False, **options).logits
            assert relative_rms(compiled(tokens(), use_cache=False, **options).logits, wanted) < 1e-5, options


def test_compiled_training_step():
    gradients = []
    for compiling in (False, True):
        model = tiny_model().train()
        step = torch.compile(model) if compiling else model
        step(tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert model.routers()[0].norm1.num_batches_tracked == 1001
    for name, gradient in gradients[0].items():
        assert relative_rms(gradients[1][name], gradient) < 1e-4, name
