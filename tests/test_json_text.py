"""Hostile JSON, sizes and keys: every reader quickly raises one of Monet's errors."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from monet import MonetConfig, MonetForCausalLM
from monet.cli import main
from monet.errors import CheckpointError, ConfigError, DataError
from monet.json_text import MAX_DEPTH, parse_json, read_json
from tests.model.tiny import tiny_model

ROOT = Path(__file__).resolve().parent.parent
DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "deep": DEEP,
    "just too deep": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "deep and cut": "{" * 100_000,
    "a long number": "1" * 5_000,
    "a number of 101 digits": "9" * 101,
    "half a pair": '{"a": ["x\\ud800"]}',
    "half a pair as a key": '{"\\uDFFF": 1}',
    "cut": '{"a": ',
    "no UTF-8": b'"\xff"',
    "empty": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused(name, tmp_path):
    content = HOSTILE[name]
    for kind in (DataError, CheckpointError):
        with pytest.raises(kind, match="line 3: no JSON"):
            parse_json(content, "line 3", kind)
    (tmp_path / "a.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"a\.json: no JSON"):
        read_json(tmp_path / "a.json")


def test_devices_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev", "zero")):
        with pytest.raises(DataError, match="not a file"):
            read_json(path)
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)


@pytest.mark.parametrize("content", [{"a": [1, 2.5, None, True, "ü🙂\x1b"]}, [[{}]] * 300, -(10**50), "\ud83d\ude42"])
def test_other_json_is_read_as_it_is(content):
    text = json.dumps(content)
    assert parse_json(text, "x") == json.loads(text) == parse_json(text.encode(), "x")


# These modules read JSON that this package has just written, or handle the errors in another way.
OWN = {
    "monet/json_text.py", "monet/training/language_models.py", "eval/sandbox/sandbox.py", "eval/sandbox/probe.py",
    "eval/core/store.py", "eval/scorers/perspective.py", "monet/data/tokens/encode_worker.py",
    "monet/data/documents/formats.py", "monet/data/documents/records.py", "monet/data/documents/hub.py",
    "monet/data/storage/writer.py", "monet/data/storage/shards.py", "monet/data/storage/names.py",
    "monet/data/preparation/pipeline.py", "monet/training/ranks/coordination.py",
}  # fmt: skip


def test_files_are_read_by_the_one_reader():
    for folder in ("monet", "eval", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = {
                ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
            }
            if {"json.loads", "json.load"} & calls:
                assert str(path.relative_to(ROOT)) in OWN, f"{path}: read JSON with monet.json_text"


def model_with(folder: Path, **keys: Any) -> Path:
    tiny_model().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_labels": 10**9}, "num_labels=1000000000: must be a whole number from 1 to"),
        ({"num_labels": "9"}, "num_labels='9'"),
        ({"num_hidden_layers": 4096}, "num_hidden_layers=4096: must be a whole number from 1 to 512"),
        ({"torch_dtype": "evil"}, "torch_dtype='evil': must be one of bfloat16"),
        ({"dtype": "load"}, "dtype='load': must be one of bfloat16"),
        ({"torch_dtype": "int8"}, "torch_dtype='int8': must be one of bfloat16"),
        ({"torch_dtype": {"a": 1}}, "must be one of bfloat16"),
        ({"attn_implementation": "flash_attention_4"}, "(?i)flash"),
        ({"attn_implementation": ["sdpa"]}, "a configuration file may name only eager, sdpa"),
        ({"attn_implementation": "attacker/kernel"}, "a configuration file may name only eager, sdpa"),
        ({"_attn_implementation": "attacker/kernel"}, "a configuration file may name only eager, sdpa"),
        ({"_attn_implementation_internal": "attacker/kernel"}, "a configuration file may name only eager, sdpa"),
    ],
    ids=str,
)
def test_keys_of_a_configuration_file(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        MonetForCausalLM.from_pretrained(model_with(tmp_path, **keys))


def test_the_limits_leave_room():
    assert MonetConfig.from_dict(tiny_model().config.to_dict() | {"torch_dtype": "bfloat16", "num_labels": 7})


@pytest.mark.parametrize("content", [DEEP, "[]", '{"a": "\\ud800"}', "1" * 5_000])
def test_a_configuration_that_is_no_json_object(tmp_path, content):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MonetForCausalLM.from_pretrained(tmp_path)
    assert main(["generate", "--model", str(tmp_path), "--prompt", "a"]) == 4


@pytest.mark.parametrize(
    "weight_map", [{"a": "../../etc/passwd"}, {"a": "/etc/passwd"}, {"a": 1}, {"a": "b.bin"}, {}, [], None, {"a": None}]
)
def test_an_index_that_leads_elsewhere(tmp_path, weight_map):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map must map each tensor"):
        MonetForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("labels", "provenance"),
    [
        ('["a", "\\ud800"]', "{}"),
        ('["a", "b"]', '{"a":' * 100_000),
        ('["a", "b"]', '{"a": ' + "1" * 5_000 + "}"),
        ('["a", {"b": 1}]', "{}"),
        ('["a", "b"]', "[]"),
    ],
    ids=["half a pair", "deep", "digits", "a label of another kind", "provenance of another kind"],
)
def test_select_refuses_hostile_statistics(tmp_path, capsys, labels, provenance):
    counts = {name: torch.ones(2, dtype=torch.int64) for name in ("tokens", "windows", "documents")}
    header = {
        "format": "monet-statistics/1", "labels": labels, "provenance": provenance, "model_fingerprint": "0" * 32
    }  # fmt: skip
    from monet.eval.attribution.statistics.result import FORMAT

    sums = torch.rand(2, 1, 3, 3, dtype=torch.float64)
    save_file({"sums": sums, **counts}, tmp_path / "s.safetensors", header | {"format": FORMAT})
    words = ["select", "--statistics", str(tmp_path / "s.safetensors"), "--out", str(tmp_path / "masks")]
    assert main(words) == 4 and "unreadable statistics" in capsys.readouterr().err
    assert load_file(tmp_path / "s.safetensors") and not (tmp_path / "masks").exists()
