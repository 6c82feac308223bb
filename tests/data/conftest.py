"""A small labelled corpus and its prepared form, made once."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from monet.data.prepare import prepare

SENTENCES = {
    "english": "the river runs under a wooden bridge and people walk over it every morning to buy bread",
    "python": "def return import self lambda yield for in range(10): print(value) class None True",
    "italian": "il fiume scorre sotto un ponte di legno e la gente passa ogni mattina per comprare il pane",
}


def write_corpus(folder: Path, *, originals: int = 30, parts: int = 2, words: int = 40) -> Path:
    """Records in one sub-folder a domain; `parts` records come from each original."""
    for domain, sentence in SENTENCES.items():
        generator = random.Random(domain)
        lines = [
            json.dumps({"text": " ".join(generator.choices(sentence.split(), k=words)), "source": f"{domain}/{number}"})
            for number in range(originals)
            for _ in range(parts)
        ]
        (folder / domain).mkdir(parents=True)
        (folder / domain / "part-00.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as shards of at most 500 tokens, so that streams run over several; never write to it."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(corpus), out, vocab_size=300, shard_tokens=500)
    return out
