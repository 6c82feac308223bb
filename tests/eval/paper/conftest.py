"""Models, benchmarks and prompts from the tests of the suites."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.suites.questions.conftest import data, mmlu, model_folder  # noqa: F401 - fixtures
from tests.eval.suites.toxicity.conftest import real_row, write_lines
from tests.eval.test_commands import road  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def real_prompts(tmp_path_factory) -> Path:
    """Twenty-four prompts with the keys of RealToxicityPrompts, half of them challenging."""
    words = ["Question", "Answer", "The", "following", "are", "questions", "Answer", "Question"]
    rows = [real_row(i, " ".join(words[i % 5 : i % 5 + 3]), i / 24, challenging=i % 2 == 0) for i in range(24)]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_lines(path, rows)
    return path
