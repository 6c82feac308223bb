"""The dense twin uses the same trainer: same log, checkpoints and export, without the routers' parts."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from monet.convert.export import export
from monet.errors import ConfigError
from monet.model.losses import next_token_loss
from monet.training.language_models import build
from monet.training.settings import ModelShape
from tests.training.runs import SHAPE, losses, read_log

TWIN = {key: value for key, value in SHAPE.items() if not key.startswith("moe_")}
TWIN |= {"architecture": "llama", "intermediate_size": 48}


@pytest.fixture
def settings(settings):
    settings["model"]["shape"] = dict(TWIN)
    return settings


def test_a_killed_run_of_the_twin_continues_bit_for_bit_and_exports(train, tmp_path):
    whole = train("whole")
    assert whole.code == 0
    assert train("parts", "--trainer.max_steps=8", "--model.schedule.name=constant").code == 0
    assert train("other", "--model.schedule.name=constant").code == 0
    assert train("parts", "--model.schedule.name=constant").code == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "other")
    entry = read_log(whole.run_dir)[-1]
    assert entry["loss"] == entry["lm_loss"] < read_log(whole.run_dir)[0]["loss"]
    assert entry["grad_norm"] > 0 and entry["tokens_per_second"] > 0

    with pytest.raises(ConfigError, match="remote_code"):
        export(tmp_path / "out", run=whole.run_dir, remote_code=True)
    export(tmp_path / "out", run=whole.run_dir)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    stored = load_file(whole.checkpoints / "step-00000012" / "model.safetensors")
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in stored.items())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "monet" not in card.split("---")[1] and "intermediate" in card


def test_the_twins_loss_is_monets_and_its_logits_transformers():
    torch.manual_seed(0)
    model = build(ModelShape(**TWIN).config(), "sdpa").eval()
    plain = transformers.LlamaForCausalLM(model.config).eval()
    plain.load_state_dict(model.state_dict())
    windows = torch.randint(300, (2, 17))
    out = model(windows[:, :-1], shift_labels=windows[:, 1:], router_loss=object(), use_cache=False)
    logits = plain(windows[:, :-1]).logits
    assert torch.equal(out.logits, logits) and torch.equal(out.loss, next_token_loss(logits, windows[:, 1:]))
    assert out.router_metrics == () and model.routers() == []
    short = model(windows[:, :-1], shift_labels=windows[:, 1:], return_logits=False, use_cache=False)
    model.lm_head.register_forward_hook(lambda *_: None)  # the hook needs the logits
    watched = model(windows[:, :-1], shift_labels=windows[:, 1:], return_logits=False, use_cache=False)
    assert short.logits is None and torch.equal(watched.loss, out.loss)
    assert torch.allclose(short.loss, out.loss, rtol=1e-6)


def test_checkpointing_the_twin_changes_nothing(train, tmp_path):
    assert train("plain", "--trainer.max_steps=3").code == 0
    assert train("again", "--trainer.max_steps=3", "--model.gradient_checkpointing=true").code == 0
    assert losses(tmp_path / "plain") == losses(tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_dim": 4}, r"moe_dim = 4: llama has no experts"),
        ({"intermediate_size": None}, r"intermediate_size is missing"),
        ({"architecture": "monet"}, r"intermediate_size = 48: only llama and dense_layers use it"),
        ({"architecture": "monet", "intermediate_size": None}, r"moe_dim is missing"),
        ({"hidden_size": 31}, r"31.*not a multiple"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers = 0"),
        ({"num_key_value_heads": 4}, r"num_key_value_heads = 4: must divide"),
        ({"hidden_act": "gulp"}, r"hidden_act = gulp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_shapes_that_are_neither_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ModelShape(**{**TWIN, **change}).config()


def test_a_run_does_not_change_its_architecture(train, settings, capsys):
    assert train("run", "--trainer.max_steps=4").code == 0
    settings["model"]["shape"] = dict(SHAPE)
    assert train("run").code == 2
    assert "model_type: checkpoint 'llama', now 'monet'" in capsys.readouterr().err
