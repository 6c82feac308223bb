"""The evidence command: its controls, its page, and all of it on models and text of a few hundred bytes."""

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.evidence import __main__ as command
from benchmarks.evidence import failures, page
from benchmarks.evidence.removal import settled
from monet import MonetForCausalLM
from monet.data.prepare import prepare
from tests.eval.conftest import config

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOMAINS = [*failures.NATURAL, "java", "php"]


def test_the_share_is_the_largest_that_beats_random_masks_everywhere():
    times = {0.01: {"a": 20.0, "b": 12.0}, 0.02: {"a": 15.0, "b": 10.0}, 0.03: {"a": 30.0, "b": 9.0}}
    assert (settled(times, 10.0), settled(times, 11.0), settled(times, 40.0)) == (0.02, 0.01, 0.01)


def test_tables_go_between_their_marks(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("head\n<!-- goals -->\nold\n<!-- end -->\nmiddle\n<!-- text -->\n<!-- end -->\ntail\n")
    for _ in range(2):
        page.insert(file, {"goals": "| a |\n", "text": r"| \1 |"})
        assert file.read_text() == (
            "head\n<!-- goals -->\n| a |\n<!-- end -->\nmiddle\n<!-- text -->\n| \\1 |\n<!-- end -->\ntail\n"
        )
    with pytest.raises(KeyError, match="0 places for 'dense'"):
        page.insert(file, {"dense": ""})


def test_the_page_tells_what_the_json_holds():
    found = json.loads((DOCS / "evidence.json").read_text())
    content = (DOCS / "evidence.md").read_text()
    for name in ("goals", "dense"):
        assert f"<!-- {name} -->\n{getattr(page, name)(found['domains']).rstrip()}\n<!-- end -->" in content
    for row in found["domains"]:
        assert row["target_over_others"] == pytest.approx(row["target_delta"] / row["others_mean_delta"])
        assert row["target_interval"][0] <= row["target_delta"] <= row["target_interval"][1]
    assert found["met"]["meets_random"] == sum(row["target_over_random"] >= 10 for row in found["domains"])


def write_text(folder: Path) -> Path:
    """Every domain writes with letters of its own; natural languages in the four works."""
    works = list(failures.SUBJECTS.values())
    for number, domain in enumerate(DOMAINS):
        draw = random.Random(number)
        letters = [chr(ord("a") + (3 * number + i) % 26) for i in range(6)]
        (folder / domain).mkdir(parents=True)
        with lzma.open(folder / domain / "part-00.jsonl.xz", "wt", encoding="utf-8") as file:
            for document in range(128):
                words = ("".join(draw.choices(letters, k=5)) for _ in range(40))
                record = {"text": " ".join(words), "source": f"{works[document % 4]}-xy:page-{document}.html"}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.mark.slow
def test_the_whole_command(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    text = write_text(tmp_path / "text")
    data = prepare(
        str(text),
        tmp_path / "data",
        vocab_size=300,
        splits={"train": 0.1, "validation": 0.3, "identify": 0.3, "evaluate": 0.3},
    )
    torch.manual_seed(0)
    MonetForCausalLM(config(vocab_size=300, initializer_range=0.3, max_position_embeddings=256)).save_pretrained(
        tmp_path / "monet"
    )
    dense = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    LlamaForCausalLM(dense).save_pretrained(tmp_path / "llama")
    for model in ("monet", "llama"):
        for file in data.tokenizer_dir.iterdir():
            (tmp_path / model / file.name).write_bytes(file.read_bytes())
    docs = tmp_path / "docs"
    docs.mkdir()
    names = [
        "shares",
        "goals",
        "matrix",
        "thresholds",
        "experts",
        "dense",
        "text",
        "ratio",
        "argmax",
        "subjects",
        "relearning",
    ]
    (docs / "evidence.md").write_text("".join(f"<!-- {name} -->\n<!-- end -->\n" for name in names))
    words = {"model": "monet", "dense": "llama", "data": "data", "text": "text", "out": "out", "docs": "docs"}
    given = [part for name, folder in words.items() for part in (f"--{name}", str(tmp_path / folder))]
    given += ["--fractions", "0.05", "0.1", "--windows", "3", "--controls", "2"]
    given += ["--owners", "french", "php", "--relearn", "php", "--steps", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["evidence", *given])
    command.main()
    written = {file.name: file.read_bytes() for file in (docs / "evidence.md", docs / "evidence.json")}
    found = json.loads(written["evidence.json"])
    assert [row["name"] for row in found["domains"]] == sorted(DOMAINS)
    assert (
        len(found["argmax"]) == 2
        and len(found["ratio"]) == len(DOMAINS)
        and set(found["relearning"]["php"]) == {"0", "1", "2"}
    )
    assert [one["name"] for one in found["subjects"]] == list(failures.SUBJECTS)
    assert {file.name for file in (docs / "evidence").iterdir()} == {command.FIGURE}
    assert written["evidence.md"].count(b"\n|--") >= len(names)

    def forbidden(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(failures, "relearned", forbidden)
    monkeypatch.setattr(command.removal, "ablate", forbidden)
    command.main()
    again = json.loads((docs / "evidence.json").read_text())
    assert again["domains"] == found["domains"] and again["relearning"] == found["relearning"]
