"""Removal of transcoder latents from a dense model, and latents as a candidate of a study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.rules import information
from monet.eval.core.inputs import LabelledSequences
from monet.eval.core.intervention import Intervention
from studies.removal.candidates import strongest
from studies.transcoders import folder
from studies.transcoders.candidate import TranscoderLatents
from studies.transcoders.folder import Trained
from studies.transcoders.intervention import LatentMask, Latents
from studies.transcoders.module import Shape, Transcoder
from tests.model.tiny import fill
from tests.tolerances import assert_close

D, F, K = 16, 24, 6
LAYERS = [0, 2]


def model_of(width: int = D) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=60, hidden_size=width, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
        initializer_range=0.3,
    )).eval()  # fmt: skip


def transcoders(seed: int = 0, layers: list[int] = LAYERS) -> dict[int, Transcoder]:
    found = {}
    for layer in layers:
        one = found[layer] = Transcoder(Shape(D, F, K))
        fill(one, seed + layer)
        generator = torch.Generator().manual_seed(seed + layer)
        one.standardise(*(torch.randn(50, D, generator=generator) * size + 1 for size in (2, 0.5)))
        one.eval().requires_grad_(False)
    return found


def mask(seed: int = 0, weight: float = 0.0) -> LatentMask:
    keep_LF = torch.ones(len(LAYERS), F)
    keep_LF[0, seed : seed + 5] = weight
    keep_LF[1, 3:9] = weight
    return LatentMask(Latents(transcoders()), keep_LF)


def explicit(model, ids, keeps) -> torch.Tensor:
    """The logits with outputs of MLPs changed by the difference of two transcoders."""
    modules, hooks = transcoders(), []
    for layer, keep_F in zip(LAYERS, keeps, strict=True):

        def change(_, inputs, output, layer=layer, keep_F=keep_F):
            one, x_TD = modules[layer], inputs[0].flatten(0, 1)
            z_TF = one.latents(x_TD)
            whole, less = (one.decoder(z) * one.out_scale for z in (z_TF, z_TF * keep_F))
            return output + (less - whole).view_as(output)

        hooks.append(model.model.layers[layer].mlp.register_forward_hook(change))
    logits = model(ids).logits
    [hook.remove() for hook in hooks]
    return logits


@torch.no_grad()
def test_removed_latents_change_the_mlp_by_the_difference_of_two_transcoders():
    model, ids, one = model_of(), torch.arange(40).view(2, 20), mask()
    assert isinstance(one, Intervention) and one.num_removed == 11 and one.removed_per_group == [5, 6]
    assert one.num_units == len(LAYERS) * F and one.unit == "latent"
    one.check_fits(model)
    before = model(ids).logits
    with one.applied_to(model):
        changed = model(ids).logits
        generated = model.generate(ids[1:, :5], max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert torch.equal(generated[0, 5:6], model(ids[1:, :5]).logits[0, -1:].argmax(-1))
    assert_close("logits", changed, explicit(model, ids, one.keep_LF))
    assert not torch.allclose(changed, before, atol=1e-3) and torch.equal(model(ids).logits, before)
    half = mask(weight=0.5)
    with half.applied_to(model):
        weaker = model(ids).logits
    assert_close("attenuated", weaker, explicit(model, ids, half.keep_LF))
    with LatentMask(one.latents, torch.ones(2, F)).applied_to(model):
        assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_nested_blocks_multiply():
    model, ids = model_of(), torch.arange(40).view(2, 20)
    latents = Latents(transcoders())
    first, second = (LatentMask(latents, mask(seed).keep_LF) for seed in (0, 3))
    with first.applied_to(model), second.applied_to(model):
        both = model(ids).logits
    with first.applied_to(model):
        pass
    assert_close("both", both, explicit(model, ids, first.keep_LF * second.keep_LF))


def test_controls_digests_and_fit():
    one = mask()
    random = one.control("number", 1)
    assert random.removed_per_group == [5, 6] and random.digest != one.digest
    assert one.taken(torch.full((2, F), 0.5)) == 5.5
    assert one.digest == mask().digest != mask(1).digest
    assert LatentMask(Latents(transcoders(7)), one.keep_LF).digest != one.digest
    assert len(one.sites(model_of())) == 2
    with pytest.raises(CheckpointError, match="do not fit a model of 3 layers and width 32"):
        one.check_fits(model_of(32))
    with pytest.raises(CheckpointError, match="a mask of 2 layers of 3 latents"):
        LatentMask(one.latents, torch.ones(2, 3)).check_fits(model_of())


def trained(out: Path, layers: list[int] = LAYERS, seed: int = 0, tokens: int = 1000) -> Path:
    """A folder of untrained transcoders."""
    named = dict.fromkeys(map(str, layers), 0.5)
    shape = Shape(D, F, K)
    result = Trained(
        "tiny", "x", layers, shape, shape.parameters, shape.parameters, tokens, seed, named, named, named,
        dict.fromkeys(named, 1), 10, 1.0, 1.0, {}, {},
    )  # fmt: skip
    out.mkdir(exist_ok=True, parents=True)
    folder.save(out, result, transcoders(seed, layers))
    return out


@pytest.fixture
def candidate(tmp_path):
    model = model_of()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3 + 19 * (number % 3), 22 + 19 * (number % 3), (12,), generator=generator).tolist()
            for number in range(9)]  # fmt: skip
    data = LabelledSequences(["a", "b", "c"], rows, [0, 1, 2] * 3)
    plan = SimpleNamespace(out=tmp_path, batch_size=4, identify=data, evaluate=data)
    dense = SimpleNamespace(model=model, plan=plan, layers=(0, 2), folder=tmp_path)
    return TranscoderLatents(trained(tmp_path / "latents"), dense), rows, model  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def test_latents_follow_the_rule_for_experts(candidate):
    found, rows, model = candidate
    size, active, tokens = torch.zeros(3, 2, F), torch.zeros(3, 2, F), torch.zeros(3)
    modules = transcoders()
    seen: dict[int, torch.Tensor] = {}
    for layer in LAYERS:
        model.model.layers[layer].mlp.register_forward_pre_hook(lambda _, x, layer=layer: seen.update({layer: x[0]}))
    for number, row in enumerate(rows):
        model(torch.tensor([row]))
        for place, layer in enumerate(LAYERS):
            z_TF = modules[layer].latents(seen[layer][0])
            size[number % 3, place] += (z_TF * modules[layer].columns_DF.norm(dim=0)).sum(0)
            active[number % 3, place] += (z_TF > 0).sum(0)
        tokens[number % 3] += len(row)
    mass, rate = found.weights("mass"), found.weights("activity")
    for index, label in enumerate(["a", "b", "c"]):
        assert_close("mass", mass[label].float(), size[index] / tokens[index])
        assert_close("activity", rate[label].float(), active[index] / tokens[index])
    bits = information(torch.stack(list(rate.values())))
    masks = found.masks(0.1)
    assert [one.num_removed for one in masks.values()] == [4, 4, 4]
    for index, one in enumerate(masks.values()):
        removed = one.keep_LF != 1
        assert bool((bits.argmax(0)[removed] == index).all())
        left = bits[index][~removed & (bits.argmax(0) == index)]
        assert bits[index][removed].min() >= left.max()
    assert found.keep(found.mask(one.keep_LF)).equal(one.keep_LF)
    assert found.fingerprint != TranscoderLatents(trained(found.folder.parent / "o", seed=9), found._dense).fingerprint


def test_a_label_without_enough_units_gets_fewer():
    owner = torch.tensor([[0, 0, 1, -1]])
    keeps = strongest(owner, torch.tensor([[1.0, 2.0, 3.0, 9.0]]), 3, 2)
    assert [(~one).sum().item() for one in keeps] == [2, 1, 0]


def test_other_layers_are_refused(candidate, tmp_path):
    found, _, _ = candidate
    with pytest.raises(ConfigError, match=r"layers \[0\], but \[0, 2\] are compared"):
        TranscoderLatents(trained(tmp_path / "other", [0]), found._dense)
