"""The other project's distribution `monet` is detected; an old editable installation of this project is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monet.other_distribution import refuse_other_distribution
from tests.test_layout import ROOT


def record(site: Path, name: str, *files: str) -> Path:
    folder = site / f"{name}.dist-info"
    folder.mkdir(parents=True)
    (folder / "RECORD").write_text("".join(f"{file},sha256=0,1\n" for file in files))
    return site


def test_import_fails_and_names_the_remedy(tmp_path):
    site = record(
        tmp_path / "site", "monet-0.3.1", "monet/core/__init__.py", "monet/__init__.py", "monet-0.3.1.dist-info/RECORD"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    done = subprocess.run(
        [sys.executable, "-c", "import monet"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr and "pip uninstall monet" in done.stderr and str(site) in done.stderr


@pytest.mark.parametrize("name", ["monet-experts-0.1.0", "monet_experts-0.1.0", "monetdb-1.0"])
def test_distributions_of_other_names_pass(tmp_path, name):
    refuse_other_distribution([str(record(tmp_path, name, "monet/__init__.py"))])


def test_an_editable_installation_under_the_former_name_passes(tmp_path):
    site = record(tmp_path, "monet-0.1.0", "__editable__.monet-0.1.0.pth", "monet-0.1.0.dist-info/METADATA")
    refuse_other_distribution([str(site)])


def test_folders_that_are_missing_or_oddly_named_pass(tmp_path):
    refuse_other_distribution(["", str(tmp_path / "missing"), str(record(tmp_path / "[a]*", "other-1.0"))])


def test_a_folder_with_a_pattern_in_its_name_is_searched(tmp_path):
    site = record(tmp_path / "[a]*", "monet-0.3.1", "monet/__init__.py")
    with pytest.raises(ImportError, match="another project"):
        refuse_other_distribution([str(site)])


def test_entries_and_records_that_cannot_be_read_pass(tmp_path):
    """Importing this package must not fail because of unrelated entries."""
    (tmp_path / "monet-0.3.1.dist-info" / "RECORD").mkdir(parents=True)
    refuse_other_distribution([b"/tmp", None, tmp_path, str(tmp_path)])
