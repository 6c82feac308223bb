"""The examples of docs/hugging-face.md run unchanged, each section on a separate small model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.tiny import FORMS, byte_tokenizer, tiny_model

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "hugging-face.md"

# Sections that need a package beyond the declared dependencies.
NEEDS = {
    "PEFT": "peft",
    "modules_to_save": "peft",
    "Adapters of several sequences": "peft",
    "Masks and adapters": "peft",
    "Supervised fine-tuning": "trl",
    "Preferences": "trl",
    "Rewards by a function": "trl",
    "Reward models": "trl",
    "Quantisation": "torchao",
    "After loading": "torchao",
    "ONNX": "onnxscript",
}

QUICK = {"Loading", "Heads", "Your own head", "Assistants", "Threads and copies", "Offload and device_map"}


def sections() -> dict[str, list[str]]:
    """Headings with their Python blocks."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        blocks = re.findall(r"^```python\n(.*?)^```$", body, flags=re.MULTILINE | re.DOTALL)
        if blocks:
            found[title] = blocks
    return found


SECTIONS = sections()


def run(title: str, form: str, folder: Path) -> dict[str, Any]:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder / "my-monet")
    tiny_model(form, vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(folder / "my-monet")
    names: dict[str, Any] = {"__name__": "example"}
    for number, block in enumerate([*SECTIONS["Loading"], *(SECTIONS[title] if title != "Loading" else [])]):
        exec(compile(block, f"{title}, block {number}", "exec"), names)
    return names


def test_the_lists_name_sections_of_the_page():
    assert not {*NEEDS, *QUICK} - SECTIONS.keys()


def cases() -> Iterator[Any]:
    """Every section with both kinds of experts. CI runs a slow section with one kind, and compiles in other tests."""
    for form, title in itertools.product(FORMS, SECTIONS):
        slow = pytest.mark.slow if form == FORMS[0] and title != "torch.compile" else pytest.mark.nightly
        yield pytest.param(form, title, marks=[] if title in QUICK else slow)


@pytest.mark.parametrize(("form", "title"), cases())
def test_the_examples_run(form, title, tmp_path, monkeypatch):
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    try:
        run(title, form, tmp_path)
    finally:
        torch.compiler.reset()
