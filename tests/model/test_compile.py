"""torch.compile: one graph without breaks, and the same numbers."""

from __future__ import annotations

import pytest
import torch

from monet import ExpertMask
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


@pytest.mark.parametrize("form", FORMS)
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
