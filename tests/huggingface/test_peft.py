"""peft adapters work on the output projections as on any linear, with masks, merged and unmerged."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from monet import ExpertMask, MonetForCausalLM
from monet.errors import CheckpointError, ConfigError
from tests.model.tiny import FORMS, tiny_model, tokens
from tests.tolerances import assert_close

peft = pytest.importorskip("peft", reason="adapters need peft")

OUTPUTS = {"horizontal": ["v"], "vertical": ["v11", "v12", "v21", "v22"]}


def logits(model, **options):
    with torch.no_grad():
        return model(tokens(), **options).logits


def adapted(form: str, **options):
    return peft.get_peft_model(tiny_model(form), peft.LoraConfig(r=4, **options))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_on_the_output_projections_acts_and_merges(form, masked):
    base = tiny_model(form)
    mask = ExpertMask.random(base.config, 30, seed=0) if masked else None
    model = adapted(form, target_modules=OUTPUTS[form], init_lora_weights=False)
    acting = logits(model, expert_mask=mask)
    assert (acting - logits(base, expert_mask=mask)).abs().max() > 0.1
    with model.disable_adapter():
        assert_close("logits", logits(model, expert_mask=mask), logits(base, expert_mask=mask))
    merged = model.merge_and_unload()
    assert type(merged.model.layers[0].moe.output_modules()[0]) is torch.nn.Linear
    assert_close("logits", logits(merged, expert_mask=mask), acting)


@pytest.mark.parametrize("init", ["pissa", "olora", True])
@pytest.mark.parametrize("form", FORMS)
def test_adapters_that_begin_at_the_base_model_leave_it_as_it_is(form, init):
    model = adapted(form, target_modules="all-linear", init_lora_weights=init)
    assert (logits(model) - logits(tiny_model(form))).abs().max() < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_every_adapter_learns(form):
    model = adapted(form, target_modules="all-linear").train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    idle = [name for name, weight in model.named_parameters() if "lora_B" in name and weight.grad is None]
    assert not idle


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_merged_weight(form):
    """The gradient of B at B = 0 is the gradient of the weight, multiplied by A and the scale."""
    name = OUTPUTS[form][-1]
    model = adapted(form, target_modules=[name], lora_alpha=4).eval()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    plain = tiny_model(form)
    plain(tokens(), labels=tokens()).loss.backward()
    for layer, base in zip(model.base_model.model.model.layers, plain.model.layers, strict=True):
        lora = getattr(layer.moe, name)
        wanted = getattr(base.moe, name).weight.grad @ lora.lora_A["default"].weight.T
        assert_close("gradient", lora.lora_B["default"].weight.grad, wanted)


def test_masks_go_with_adapters(tmp_path):
    base = tiny_model()
    mask = ExpertMask.random(base.config, 30, seed=0)
    mask.save(tmp_path / "mask.safetensors", model=base)
    before = base.fingerprint()
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["q_proj", "w1", "v11"], modules_to_save=["norm"])
    )
    assert model.fingerprint() == before, "adapters do not change the fingerprint"
    loaded = ExpertMask.load(tmp_path / "mask.safetensors", model=model)
    with loaded.applied_to(model) as same:
        assert same is model
        assert torch.equal(logits(model), logits(base, expert_mask=mask))
    with pytest.raises(ConfigError, match="contains no Monet model"), mask.applied_to(torch.nn.Linear(2, 2)):
        pass


def test_an_adapter_folder_of_a_masked_model_loads(tmp_path):
    base = tiny_model()
    base.set_expert_mask(ExpertMask.random(base.config, 30, seed=0))
    base.save_pretrained(tmp_path / "base")
    base = MonetForCausalLM.from_pretrained(tmp_path / "base").eval()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wanted = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = MonetForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert loaded.expert_mask == base.expert_mask
    assert_close("logits", logits(loaded), wanted)


def adapter_folder(base, folder, base_name):
    """A folder, saved by peft, with an adapter that changes the logits."""
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(base_name)
    model.save_pretrained(folder)


def without_tensors(folder, names):
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if name not in names}
    save_file(kept, path, {"format": "pt"})


@pytest.mark.parametrize("auto", [MonetForCausalLM, AutoModelForCausalLM])
def test_an_adapter_in_a_models_folder_is_refused_and_hides_nothing(tmp_path, auto):
    tiny_model().save_pretrained(tmp_path)
    adapter_folder(tiny_model(), tmp_path, tmp_path)
    with pytest.raises(CheckpointError, match="contains both a model and an adapter"):
        auto.from_pretrained(tmp_path)
    without_tensors(tmp_path, ["model.norm.weight"])
    with pytest.raises(CheckpointError, match="contains both a model and an adapter"):
        auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("auto", [MonetForCausalLM, AutoModelForCausalLM])
def test_an_adapter_hides_no_missing_tensor_of_its_base_model(tmp_path, auto):
    tiny_model().save_pretrained(tmp_path / "base")
    adapter_folder(tiny_model(), tmp_path / "adapter", tmp_path / "base")
    loaded = auto.from_pretrained(tmp_path / "adapter")
    assert (logits(loaded.eval()) - logits(tiny_model())).abs().max() > 0.1
    without_tensors(tmp_path / "base", ["model.norm.weight", "model.layers.0.moe.b1"])
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors: model\.layers\.0\.moe\.b1, model\.norm\.weight"):
        auto.from_pretrained(tmp_path / "adapter")


def test_a_base_model_is_checked_once(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "base")
    base = MonetForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    seen, isfinite = [], torch.Tensor.isfinite

    def watched(tensor):
        seen.append(tensor)
        return isfinite(tensor)

    monkeypatch.setattr(torch.Tensor, "isfinite", watched)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    floats = [tensor for tensor in loaded.state_dict().values() if tensor.is_floating_point()]
    assert len(seen) == len(floats) and len({tensor.data_ptr() for tensor in seen}) == len(seen)


def test_a_damaged_adapter_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    adapter_folder(tiny_model(), tmp_path / "adapter", tmp_path / "base")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    first = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="the adapter lacks 1 tensors"):
        MonetForCausalLM.from_pretrained(tmp_path / "adapter")
    save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        MonetForCausalLM.from_pretrained(tmp_path / "adapter")
    path.unlink()
    torch.save(tensors, path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickled adapters are never read"):
        MonetForCausalLM.from_pretrained(tmp_path / "adapter")
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has an adapter too"):
        MonetForCausalLM.from_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no readable adapter configuration"):
        MonetForCausalLM.from_pretrained(tmp_path / "adapter")
