"""Files for contributors and citations parse, and everything that they name exists."""

from __future__ import annotations

import re

import pytest
import yaml

import monet
from tests.test_layout import ROOT

FILES = sorted([*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])
TARGETS = {line.split(":")[0] for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if ":" in line}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_parses(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_workflow_runs_targets_of_the_makefile():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs.keys() == {"oldest", "tested", "newest"}
    commands = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert all(words[0] == "make" and words[1] in TARGETS for words in commands), commands


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == monet.__version__
    assert f"\n## {monet.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


SUBJECT = "Masks of one call are checked once"
BODY = "Each check hashed all weights again."


@pytest.mark.parametrize(
    "message, passes",
    [
        (f"{SUBJECT}\n\n{BODY}\n", True),
        (f"{SUBJECT}\n\n# a comment of git\n\n{BODY}", True),
        (f"{'x' * 71}\n\n{BODY}", True),
        (f"{'x' * 72}\n\n{BODY}", False),
        (f"{SUBJECT}.\n\n{BODY}", False),
        (f"{SUBJECT}\n{BODY}", False),
        (f"{SUBJECT}\n", False),
        (f"{SUBJECT}\n\n# Please enter the commit message\n", False),
        (f"{SUBJECT}\n\n# {'-' * 24} >8 {'-' * 24}\n# Do not modify\ndiff --git a/x b/x\n", False),
        ("\n\nwip", False),
        ("Merge branch 'main' into x\n", True),
        (f'Revert "{SUBJECT}"\n', True),
    ],
)
def test_a_commit_message_needs_a_short_subject_and_a_body(message, passes):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if hook["id"] == "commit-message"]
    # pre-commit's pygrep reads the file as bytes, with these flags for --multiline
    found = re.search(hook["entry"].encode(), message.encode(), re.MULTILINE | re.DOTALL)
    assert bool(found) == passes
