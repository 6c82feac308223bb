"""Warm starts: a run starts once with the weights of a folder; a frozen router does not move."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

import monet
from monet.convert.export import export
from monet.errors import ConfigError
from monet.model.modeling_monet import MonetForCausalLM
from monet.training.language_models import refuse_other_tokenizer, warm_start
from monet.training.module import MonetLightningModule
from monet.training.optim import parameter_groups
from monet.training.settings import ModelShape, differing_keys
from tests.compat.released import AUTO_MAP, change_config
from tests.tolerances import assert_close
from tests.training.runs import SHAPE, losses, read_log
from tests.training.test_twin import TWIN

LAST = "step-00000012"


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def is_router(name: str) -> bool:
    return ".router." in name


@pytest.fixture
def source(train, tmp_path):
    """A trained and exported model."""
    assert train("source").code == 0
    export(tmp_path / "source-model", run=tmp_path / "source")
    return tmp_path / "source-model"


def test_a_run_starts_from_an_export_and_never_reads_it_again(train, settings, source, tmp_path):
    settings["model"]["init_from"] = str(source)
    settings["model"]["schedule"] = {"name": "constant"}
    whole = train("whole")
    assert whole.code == 0
    first = weights(whole.checkpoints / "step-00000004")
    assert not any(torch.equal(first[name], tensor) for name, tensor in weights(source).items() if "proj" in name)
    # the source's last loss, not that of random weights
    assert losses(whole.run_dir)[0][1] < losses(tmp_path / "source")[0][1] - 0.2

    assert train("parts", "--trainer.max_steps=4").code == 0
    shutil.rmtree(source)
    assert train("parts").code == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = (weights(tmp_path / name / "checkpoints" / LAST) for name in ("parts", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("kind", ["checkpoint", "bfloat16"])
def test_checkpoints_and_half_precision_exports_start_a_run_too(train, settings, source, tmp_path, kind):
    folder = tmp_path / "source" / "checkpoints" / LAST
    if kind == "bfloat16":
        folder = tmp_path / "half"
        export(folder, run=tmp_path / "source", dtype="bfloat16")
    settings["model"] |= {"init_from": str(folder)}
    # an update without effect: the first checkpoint holds the loaded weights
    settings["model"]["optimizer"] = {"learning_rate": 1e-30, "weight_decay": 0.0}
    settings["model"]["schedule"] = {"name": "constant"}
    assert train("new", "--trainer.max_steps=1", "--checkpoint_every=1").code == 0
    found = weights(tmp_path / "new" / "checkpoints" / "step-00000001")
    for name, tensor in weights(folder).items():
        if "running" not in name and "tracked" not in name:
            assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor.float()), name


def test_a_frozen_router_does_not_move(train, settings, source, tmp_path):
    settings["model"] |= {"init_from": str(source), "freeze_router": True}
    run = train("frozen")
    assert run.code == 0
    before, after = weights(source), weights(run.checkpoints / LAST)
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in after if not is_router(name)}
    assert all(entry["loss"] == entry["lm_loss"] and entry["uniformity"] > 0 for entry in read_log(run.run_dir))
    state = json.loads((run.checkpoints / LAST / "state.json").read_text())
    assert "router_decay" not in json.dumps(state)
    # a continued run keeps its router frozen
    assert train("frozen", "--trainer.max_steps=14").code == 0
    after = weights(run.checkpoints / "step-00000014")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if is_router(name))
    settings["model"]["freeze_router"] = False
    assert train("frozen", "--trainer.max_steps=16").code == 2


def test_a_hybrid_starts_from_a_hybrid_and_its_routers_can_be_frozen(train, settings, tmp_path, capsys):
    settings["model"]["shape"] |= {"dense_layers": [1], "intermediate_size": 48}
    assert train("source").code == 0
    export(tmp_path / "hybrid", run=tmp_path / "source")
    before = weights(tmp_path / "hybrid")
    # Layers 0 and 2 are one routing group, whose router is in layer 0.
    routers = {name for name in before if is_router(name)}
    assert routers and all(name.startswith("model.layers.0.") for name in routers)
    settings["model"] |= {"init_from": str(tmp_path / "hybrid"), "freeze_router": True}
    run = train("frozen")
    assert run.code == 0
    after = weights(run.checkpoints / LAST)
    assert {name for name, tensor in after.items() if torch.equal(tensor, before[name])} == routers
    assert losses(run.run_dir)[0][1] < losses(tmp_path / "source")[0][1] - 0.2
    settings["model"]["shape"]["dense_layers"] = [0]
    capsys.readouterr()
    assert train("other").code == 2
    assert "dense_layers: checkpoint [1], now [0]" in " ".join(capsys.readouterr().err.split()).replace("\\", "")


def test_a_frozen_router_has_no_gradient_and_no_place_in_the_optimiser(source):
    shape = ModelShape(**{**SHAPE, "attention_dropout": 0.0})
    module = MonetLightningModule(shape, init_from=str(source), freeze_router=True)
    model = module.model.train()
    windows = torch.randint(280, (2, 17))
    model(windows[:, :-1], shift_labels=windows[:, 1:], router_loss=module.router_loss).loss.backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert names == {name for name, _ in model.named_parameters() if is_router(name)} and names
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    model(windows[:, :-1], shift_labels=windows[:, 1:]).loss.backward()
    assert all(torch.equal(model.get_parameter(name).grad, grad) for name, grad in gradients.items())
    groups = parameter_groups(model, module.optimizer_settings)
    assert {group["name"] for group in groups} == {"body_decay", "body_no_decay"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_experts": 6, "moe_heads": 1}, r"moe_experts: checkpoint 8, now 6; moe_heads: checkpoint 2, now 1"),
        ({"moe_topk": 2}, r"moe_topk: checkpoint 3, now 2"),
        ({**{key: None for key in SHAPE if key.startswith("moe_")}, **TWIN}, r"model_type: checkpoint 'monet'"),
    ],
    ids=["sizes", "threshold", "architecture"],
)
def test_another_models_weights_are_refused_and_every_key_named(train, settings, source, capsys, change, message):
    settings["model"]["shape"] = {**SHAPE, **change}
    settings["model"]["init_from"] = str(source)
    assert train("new").code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert str(source) in error and message in error.replace("\\", "")


# Content of config.json in the authors' release, and keys that other tools add to it.
FOREIGN = {
    "auto_map": AUTO_MAP, "transformers_version": "4.47.1", "_name_or_path": "MonetLLM/monet-vd-1.4B-100BT-hf",
    "_attn_implementation_autoset": True, "attn_implementation": "flash_attention_2", "torch_dtype": "bfloat16",
    "tokenizer_class": "LlamaTokenizer", "id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1},
    "problem_type": None, "task_specific_params": None, "unsloth_version": "2025.1", "use_cache": False,
    "bos_token_id": 7, "mm_projector_type": "mlp2x_gelu",
}  # fmt: skip


def test_a_released_folder_starts_a_run_as_it_is(train, settings, source):
    export_config = change_config(source, **FOREIGN)
    assert export_config["auto_map"] == AUTO_MAP
    settings["model"] |= {"init_from": str(source), "schedule": {"name": "constant"}}
    run = train("new", "--trainer.max_steps=1", "--checkpoint_every=1")
    assert run.code == 0
    written = json.loads((run.checkpoints / "step-00000001" / "config.json").read_text())
    assert not written.keys() & FOREIGN.keys() - {"bos_token_id", "torch_dtype", "transformers_version", "use_cache"}
    assert train("new", "--trainer.max_steps=2").code == 0


def test_every_key_that_a_model_is_built_from_counts(source):
    stored = json.loads((source / "config.json").read_text())
    assert differing_keys(stored, stored | FOREIGN) == []
    for key, value in {"moe_topk": 2, "rope_theta": 5e5, "hidden_act": "silu", "tie_word_embeddings": False}.items():
        (text,) = differing_keys(stored, stored | {key: value})
        assert text.startswith(f"{key}: checkpoint {stored[key]!r}, now")
    assert differing_keys(stored | {"quantization_config": {"quant_method": "torchao"}}, stored)
    twin = LlamaConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2).to_dict()
    assert differing_keys(twin, twin | {"auto_map": {}}) == []
    assert differing_keys(twin, twin | {"intermediate_size": 32, "mlp_bias": True}) == [
        "intermediate_size: checkpoint 16, now 32",
        "mlp_bias: checkpoint False, now True",
    ]


def model_of(shape: dict) -> MonetLightningModule:
    return MonetLightningModule(ModelShape(**{**SHAPE, "attention_dropout": 0.0, **shape}))


@pytest.mark.parametrize("change", [
    {"max_position_embeddings": 128},
    {"max_position_embeddings": 128, "rope_theta": 5e5},
    {"max_position_embeddings": 128, "rope_scaling": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
], ids=["positions", "theta", "yarn"])  # fmt: skip
def test_a_longer_context_may_be_trained(train, settings, source, capsys, change):
    settings["model"]["shape"] |= change
    settings["model"] |= {"init_from": str(source), "schedule": {"name": "constant"}}
    capsys.readouterr()
    run = train("new", "--data.seq_len=96", "--trainer.max_steps=1", "--checkpoint_every=1")
    assert run.code == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights of")]
    assert all(f"{key}: checkpoint" in line for key in change)
    written = json.loads((run.checkpoints / "step-00000001" / "config.json").read_text())
    assert all(written[key] == value for key, value in change.items() if key != "rope_scaling")
    assert (written["rope_scaling"] is not None) == ("rope_scaling" in change)


def test_other_rotary_settings_are_used_and_the_weights_are_the_folders(source):
    model = model_of({"rope_theta": 5e5}).model.eval()
    warm_start(model, str(source))
    twin = MonetForCausalLM(model_of({"rope_theta": 5e5}).model.config).eval()
    twin.load_state_dict(MonetForCausalLM.from_pretrained(source).state_dict())
    ids = torch.arange(40)[None]
    assert torch.equal(model(ids).logits, twin(ids).logits)
    assert not torch.allclose(model(ids).logits, MonetForCausalLM.from_pretrained(source).eval()(ids).logits)


def test_new_rows_of_a_larger_vocabulary_are_the_mean_of_the_old_ones(source, capsys):
    model = model_of({"vocab_size": 307}).model
    warm_start(model, str(source))
    assert "vocab_size: checkpoint 300, now 307" in capsys.readouterr().out
    rows, old = model.model.embed_tokens.weight.detach(), weights(source)["model.embed_tokens.weight"]
    assert torch.equal(rows[:300], old)
    assert_close("new rows", rows[300:], old.mean(0).expand(7, -1))
    with pytest.raises(ConfigError, match="vocab_size: checkpoint 300, now 290"):
        warm_start(model_of({"vocab_size": 290}).model, str(source))


def test_a_tied_head_may_become_one_of_its_own_but_not_the_other_way(source, tmp_path):
    model = model_of({"tie_word_embeddings": False}).model.eval()
    warm_start(model, str(source))
    before = MonetForCausalLM.from_pretrained(source).eval()
    ids = torch.arange(40)[None]
    assert torch.equal(model(ids).logits, before(ids).logits)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "untied")
    with pytest.raises(ConfigError, match="tie_word_embeddings: checkpoint False, now True"):
        warm_start(model_of({}).model, str(tmp_path / "untied"))


def damage_nothing_there(folder):
    shutil.rmtree(folder)


def damage_nan(folder):
    state = weights(folder)
    state["model.norm.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def damage_missing(folder):
    state = weights(folder)
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def damage_pickle(folder):
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def damage_mask(folder):
    model = monet.MonetForCausalLM.from_pretrained(folder)
    model.set_expert_mask(monet.ExpertMask.random(model.config, 3, seed=0))
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (damage_nothing_there, 4, "no such folder"),
        (damage_nan, 4, "model.norm.weight holds values that are NaN"),
        (damage_missing, 4, "lacks 1 tensors: model.norm.weight"),
        (damage_pickle, 4, "pickled weights are never read"),
        (damage_mask, 2, "has removed experts"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_damaged_sources_are_refused(train, settings, source, capsys, damage, code, message):
    damage(source)
    settings["model"]["init_from"] = str(source)
    assert train("new").code == code
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["export", "checkpoint"])
def test_data_of_another_tokenizer_are_refused(train, settings, source, tmp_path, capsys, kind):
    folder, tokenizer = source, source / "tokenizer.json"
    if kind == "checkpoint":
        folder, tokenizer = tmp_path / "source" / "checkpoints" / LAST, tmp_path / "source" / "tokenizer/tokenizer.json"
    settings["model"] |= {"init_from": str(folder), "schedule": {"name": "constant"}}
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    by_id = {index: token for token, index in vocabulary.items()}
    # a token in only one of the two is accepted
    content["added_tokens"].append({**content["added_tokens"][0], "id": len(by_id) + 7, "content": "<new>"})
    tokenizer.write_text(json.dumps(content))
    assert train("longer", "--trainer.max_steps=1").code == 0
    vocabulary[by_id[270]], vocabulary[by_id[271]] = 271, 270
    tokenizer.write_text(json.dumps(content))
    assert train("new").code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"id 270 is {by_id[271]!r}" in error and "(2 ids differ)" in error


def test_data_of_another_normaliser_are_refused(source, tmp_path):
    """The vocabularies are equal, but the same text has other ids."""
    mine = tmp_path / "data" / "tokenizer"
    mine.mkdir(parents=True)
    content = json.loads((source / "tokenizer.json").read_text())
    (mine / "tokenizer.json").write_text(json.dumps(content))
    refuse_other_tokenizer(str(source), mine)
    (mine / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(ConfigError, match="differ in normalizer, so the same text has other ids"):
        refuse_other_tokenizer(str(source), mine)
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "single": bos,
        "pair": bos,
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [0], "tokens": ["<bos>"]}},
    }
    (mine / "tokenizer.json").write_text(
        json.dumps(content | {"post_processor": {"type": "TemplateProcessing", **template}})
    )
    with pytest.warns(UserWarning, match=r"begins a text with \['<bos>'\]"):
        refuse_other_tokenizer(str(source), mine)


def test_freezing_random_routers_or_none_is_refused(train, settings, capsys):
    settings["model"]["freeze_router"] = True
    assert train("new").code == 2
    assert "random routers would stay random" in capsys.readouterr().err
    settings["model"]["shape"] = dict(TWIN)
    assert train("new").code == 2
    assert "llama has no router" in capsys.readouterr().err


def test_the_twin_starts_warm_too(train, settings, tmp_path):
    settings["model"]["shape"] = dict(TWIN)
    assert train("first").code == 0
    settings["model"]["init_from"] = str(tmp_path / "first" / "checkpoints" / LAST)
    assert train("second").code == 0
    assert losses(tmp_path / "second")[0][1] < losses(tmp_path / "first")[0][1] - 0.2
