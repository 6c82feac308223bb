"""A small labelled corpus and its prepared form, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from monet.data.preparation.prepare import prepare
from tests.data.samples import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as shards of at most 500 tokens, so that streams run over several; never write to it."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(corpus), out, vocab_size=300, shard_tokens=500)
    return out
