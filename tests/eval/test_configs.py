"""configs/eval has one file for each command; it names every option with its default."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from monet.cli import VERBS
from monet.options import defaults_of, groups_of, types_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"
# The command of each file, and the options that the file sets for the demo.
COMMANDS = {
    "stats": ("stats", {"model", "data", "out", "seq_len", "max_windows"}),
    "index": ("index", {"model", "data", "out", "seq_len"}),
    "select": ("select", {"statistics", "out"}),
    "ablate": ("ablate", {"model", "data", "masks", "out", "seq_len", "max_windows"}),
    "curve": ("curve", {"model", "data", "statistics", "thresholds", "out", "seq_len", "max_windows"}),
    "report": ("report", {"result", "out"}),
    "general": ("eval general", {"model", "out", "masks"}),
    "domains": ("eval domains", {"model", "out", "masks"}),
    "facts": ("eval facts", {"model", "facts", "out", "masks"}),
    "code": ("eval code", {"model", "out", "masks"}),
    "toxicity": ("eval toxicity", {"model", "prompts", "out", "masks", "text", "text_windows", "seq_len"}),
    "toxicity-scores": ("eval toxicity-scores", {"prompts", "out", "scorer"}),
    "reproduce": ("reproduce", {"table", "model", "out", "scorer"}),
}


def plain(value: Any) -> Any:
    """A default as a YAML file writes it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(one) for name, one in dataclasses.asdict(value).items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_every_file_has_its_command():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_names_every_option_with_its_default(name):
    verb, demo = COMMANDS[name]
    module, _, function = VERBS[verb].target.partition(":")
    target = getattr(importlib.import_module(module), function)
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert set(content) == set(types_of(target))
    own = {one: parameter.default for one, parameter in inspect.signature(target).parameters.items()}
    defaults = {one: default for one, default in own.items() if one not in groups_of(target)} | defaults_of(target)
    for option, default in defaults.items():
        assert option in demo or content[option] == plain(default), option
