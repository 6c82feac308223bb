"""docs/released-models.md: its Python code runs unchanged, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from monet import MonetForCausalLM
from monet.data.tokens.tokenizer import train_tokenizer
from monet.errors import ConfigError
from tests.compat.released import AUTO_MAP, TEXT, change_config
from tests.model.tiny import FORMS, tiny_model

PAGE = (Path(__file__).parents[2] / "docs" / "released-models.md").read_text(encoding="utf-8")
NAME = "MonetLLM/monet-vd-1.4B-100BT-hf"
SIZES = ("850M", "1.4B", "4.1B")
RELEASED = {f"monet-{form}-{size}-100BT-hf" for form in ("vd", "hd") for size in SIZES} | {
    "codemonet-vd-1.4B-100BT-hf", "monet-vd-1.4B-100BT-chat-hf", "visionmonet-vd-1.4B-100BT-hf",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_blocks_run_in_their_order(form, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "released"
    tokenizer = train_tokenizer(["The cell is " + text for text in TEXT], 280)
    tiny_model(form, vocab_size=280, bos_token_id=0, eos_token_id=1, pad_token_id=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    change_config(folder, auto_map=AUTO_MAP)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    for block in blocks:
        exec(compile(block.replace(NAME, str(folder)), "docs/released-models.md", "exec"), names)
    assert type(names["model"]) is MonetForCausalLM and names["model"].config.auto_map == AUTO_MAP
    assert names["weights"].shape[-1] == 36 and torch.allclose(names["weights"].sum(-1), torch.tensor(3.0))
    before, after, masked = (names[key] for key in ("before", "after", "masked"))
    assert not torch.allclose(before, after) and not torch.allclose(before, masked)
    assert names["seen"] == [(6, True)]
    assert names["out"].uniformity_loss > 0 and names["out"].ambiguity_loss > 0
    assert torch.isfinite(
        names["llava"](input_ids=names["picture"], pixel_values=torch.zeros(1, 3, 32, 32)).logits
    ).all()
    printed = capsys.readouterr().out
    assert "torch.Size([1, 2, " in printed and "\nFalse\n" in printed and "MonetConfig" in printed


def test_the_nine_models_each_have_a_row():
    rows = re.findall(r"^\| `(\S+-hf)` \|.*\| (.+) \|$", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} == RELEASED and len(rows) == 9
    for name, command in rows:
        assert f"models/{name}" in command or (name.startswith("visionmonet") and command.startswith("none"))


def test_the_commands_are_known():
    from monet.cli import main

    commands = [line for line in PAGE.replace("`", "\n").splitlines() if re.match(r"monet \w+ .*--\w", line)]
    assert len(commands) == 13
    for command in commands:
        words = shlex.split(command)[1:]
        options = [word for word in words if word.startswith("--")]
        verb = words[: words.index(options[0])]
        help_text = _help(main, verb)
        assert all(f"{option} " in help_text for option in options), command


def _help(main: Any, verb: list[str]) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    return out.getvalue()


def test_the_values_that_a_call_can_state(tmp_path):
    """Values that differ from the authors' stack are refused in a file and accepted in the call."""
    tiny_model().save_pretrained(tmp_path)
    change_config(tmp_path, pad_token_id=-1)
    with pytest.raises(ConfigError, match="pad_token_id=-1"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, pad_token_id=None).config.pad_token_id is None
    change_config(tmp_path, pad_token_id=0, rms_norm_eps=None)
    with pytest.raises(ConfigError, match="rms_norm_eps is missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, rms_norm_eps=1e-6).config.rms_norm_eps == 1e-6
    change_config(tmp_path, rms_norm_eps=1e-6, moe_shared=1)
    with pytest.raises(ConfigError, match="moe_shared: unknown key"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
