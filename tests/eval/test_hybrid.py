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

# One or two tests of each suite that compare its numbers with another computation, or with planted experts.
CHOSEN = [
    "attribution/test_stats.py::test_sums_equal_a_loop_over_explicit_experts",
    "attribution/test_selection.py::test_the_planted_expert_is_found_and_nothing_else",
    "suites/loss/test_ablate.py::test_losses_are_those_of_the_plain_formula",
    "suites/loss/test_ablate.py::test_the_planted_experts_are_what_their_labels_lose",
    "suites/questions/test_general.py::test_numbers_are_counted_from_the_outcomes",
    "suites/questions/test_domains.py::test_changes_are_counted_from_the_outcomes",
    "suites/facts/test_evaluate.py::test_an_expert_holds_one_relation",
    "suites/code/test_evaluate.py::test_perplexity_alone_needs_neither_problems_nor_runtimes",
    "suites/toxicity/test_evaluate.py::test_the_planted_purge_is_found_and_its_controls_are_not",
]


def test_the_models_of_these_tests_become_hybrids(monkeypatch):
    assert config().dense_layers is None
    monkeypatch.setenv(HYBRID, "1")
    assert config().dense_layers == [1] and config().num_routing_groups == 2


def run(names: list[str], folder: Path, *options: str) -> None:
    files = [str(ROOT / "tests" / "eval" / name) for name in names]
    places = ["-o", f"cache_dir={folder / 'cache'}", f"--basetemp={folder / 'tests'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *places, *options, *files],
        cwd=ROOT, env={**os.environ, HYBRID: "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_a_number_of_every_suite_is_right_on_a_hybrid(tmp_path):
    run(CHOSEN, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
def test_the_suite_runs_on_a_hybrid(part, tmp_path):
    run(PARTS[part], tmp_path, "-k", f"not ({TOYS})")
