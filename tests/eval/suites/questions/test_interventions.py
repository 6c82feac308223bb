"""Both suites take any intervention: one without experts, and the neurons of a dense model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from monet.errors import CheckpointError, ConfigError, DataError
from monet.eval.baselines.neurons import NeuronMask
from monet.eval.choices.scoring import tokenizer_of
from monet.eval.core.bootstrap import Bootstrap
from monet.eval.core.conditions import Condition
from monet.eval.core.controls import Controls
from monet.eval.core.intervention import Intervention
from monet.eval.reporting import markdown
from monet.eval.suites.questions.domains import evaluate_domains
from monet.eval.suites.questions.domains_result import DomainsResult
from monet.eval.suites.questions.general import evaluate_general
from monet.eval.suites.questions.general_result import GeneralResult
from monet.eval.suites.questions.scoring import Scorer, correct
from monet.eval.suites.questions.tasks import load_tasks
from monet.masks.controls import ControlKind, control_keep, removed_mass
from monet.masks.expert_mask import keep_digest
from monet.training.language_models import LlamaForCausalLM
from tests.eval.suites.questions.samples import write_mmlu
from tests.eval.suites.questions.test_golden import spec_of

QUICK = {"progress": False, "batch_size": 8, "bootstrap": Bootstrap(resamples=1000), "controls": Controls(2)}


@dataclass(frozen=True)
class ScaledHeads:
    """Scales the output of each attention head: `scale_LH` (layers, heads), float32; 1 leaves a head unchanged."""

    scale_LH: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    unit = "head"
    group = "layer"

    @property
    def num_units(self) -> int:
        return self.scale_LH.numel()

    @property
    def removed_per_group(self) -> list[int]:
        return (self.scale_LH != 1).sum(1).tolist()

    @property
    def num_removed(self) -> int:
        return sum(self.removed_per_group)

    @property
    def digest(self) -> str:
        return keep_digest(self.scale_LH)

    def check_fits(self, model: nn.Module) -> None:
        if (layers := len(self.sites(model))) != len(self.scale_LH):
            raise CheckpointError(f"scales of {len(self.scale_LH)} layers; the model has {layers}")

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        with contextlib.ExitStack() as stack:
            for attention, scale_H in zip(self.sites(model), self.scale_LH, strict=True):

                def scaled(_, inputs, scale_H=scale_H):
                    return ((inputs[0].unflatten(-1, (len(scale_H), -1)) * scale_H[:, None]).flatten(-2),)

                stack.callback(attention.o_proj.register_forward_pre_hook(scaled).remove)
            yield model

    def control(self, kind: ControlKind, seed: int, weights: Tensor | None = None) -> ScaledHeads:
        return ScaledHeads(control_keep(self.scale_LH, kind, seed, weights), {"made_by": "control"})

    def taken(self, weights: Tensor) -> float:
        return removed_mass(self.scale_LH, weights)

    def sites(self, model: Any) -> list[Any]:
        return [layer.self_attn for layer in model.model.layers]


@pytest.fixture
def heads() -> ScaledHeads:
    return ScaledHeads(torch.tensor([[0.0, 1.0], [3.0, 1.0], [1.0, 1.0]]))


def test_the_toy_is_an_intervention(heads, model):
    assert isinstance(heads, Intervention)
    ids = torch.arange(12)[None]
    before = model(input_ids=ids).logits
    with heads.applied_to(model):
        assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_general_ability_under_any_intervention(heads, model, data, tmp_path):
    options = {"data": data, "names": ["ARC", "PIQA"], "shots": [0], **QUICK}
    result = evaluate_general(model, {"some": heads}, out=tmp_path, **options)
    assert GeneralResult.load(tmp_path) == result and result.unit == "head"
    assert [row.removed for row in result.rows] == [0, 2, 2, 2] and result.rows[1].controls == 2
    (task,), _ = load_tasks([spec_of("piqa", "cloze")], 0, data=data)
    scorer = Scorer(model, tokenizer_of(model, None), tmp_path / "other", batch_size=8)
    wanted = correct(task.questions, scorer.outcomes(task.questions, Condition("x", heads)), True).mean()
    assert result.rows[1].cells["PIQA"].score.value == wanted
    shown = markdown.render(result.report())
    assert "As many random heads are removed" in shown and "expert" not in shown
    assert result.provenance["held_out"] is None and "There is no record of the text" in shown


def test_categories_under_any_intervention(heads, model, tmp_path):
    write_mmlu(tmp_path / "data", subjects=["anatomy", "prehistory"], questions=6)
    result = evaluate_domains(model, {"history": heads, "health": heads}, out=tmp_path, data=tmp_path / "data", **QUICK)
    assert DomainsResult.load(tmp_path) == result and (result.unit, result.group) == ("head", "layer")
    for one in result.removals:
        assert (one.removed, one.removed_per_group, one.share) == (2, [1, 1, 0], 1 / 3)
        assert one.controls == len(one.random_per_control) == 2
    assert any(cell.value for cell in result.removals[0].log_probability)
    shown = markdown.render(result.report())
    assert "Heads of each category by layer" in shown and "expert" not in shown
    assert result.provenance["held_out"] is None


def test_neurons_of_a_dense_model(model, model_folder, data, mask, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**shape, vocab_size=340, max_position_embeddings=160, initializer_range=0.3)
    llama = LlamaForCausalLM(config).eval()
    neurons = NeuronMask(torch.rand(2, 20) > 0.5)
    options = {"data": data, "names": ["PIQA"], "shots": [0], "tokenizer": str(model_folder), **QUICK}
    result = evaluate_general(llama, {"some": neurons}, out=tmp_path, **options)
    assert result.unit == "neuron" and np.isfinite(result.rows[1].average.value)
    with pytest.raises(CheckpointError, match="mask for 'some'"):
        evaluate_general(model, {"some": neurons}, out=tmp_path, **options)
    with pytest.raises(ConfigError, match="LlamaForCausalLM"):
        evaluate_domains(llama, out=tmp_path, data=data, tokenizer=str(model_folder), **QUICK)
    both = {"heads": ScaledHeads(torch.ones(3, 2) * 0.5), "experts": mask}
    with pytest.raises(DataError, match="masks of experts and heads cannot be judged together"):
        evaluate_general(model, both, out=tmp_path, **options)
