"""Every suite runs on a hybrid: tests of the suites again, with models that have one more layer, a dense one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.conftest import HYBRID, config

ROOT = Path(__file__).resolve().parents[2]
# The toy interventions of these tests fit the usual number of layers only.
TOYS = "any_intervention or toy or neurons_of_a_dense_model"
PARTS = {
    "statistics": ["attribution/test_stats.py", "attribution/test_selection.py", "test_honesty.py"],
    "loss": ["suites/loss", "test_commands.py"],
    "questions": ["suites/questions/test_general.py", "suites/questions/test_domains.py"],
    "facts": ["suites/facts/test_evaluate.py", "suites/facts/test_scoring.py"],
    "code": ["suites/code/test_evaluate.py", "suites/code/test_generation.py"],
    "toxicity": ["suites/toxicity/test_evaluate.py", "suites/toxicity/test_sampling.py"],
}


def test_the_models_of_these_tests_become_hybrids(monkeypatch):
    assert config().dense_layers is None
    monkeypatch.setenv(HYBRID, "1")
    assert config().dense_layers == [1] and config().num_routing_groups == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_suite_runs_on_a_hybrid(part, tmp_path):
    files = [str(ROOT / "tests" / "eval" / name) for name in PARTS[part]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}", "-k",
         f"not ({TOYS})", *files],
        cwd=ROOT, env={**os.environ, HYBRID: "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
