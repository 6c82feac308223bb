"""The tutorial and the notebooks run unchanged on a small model that is trained here, and their claims hold."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monet.cli import main
from monet.training.cli import main as train
from tests.test_layout import ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = DOCS / "notebooks"

pytestmark = pytest.mark.nightly  # `make docs`, which CI runs, executes the notebooks


def in_this_process(words: list[str], **_: Any) -> SimpleNamespace:
    """Run a command of the package without a new process, whose imports would take longer than its work."""
    if words[1] == "train.py":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words[1:])
            return SimpleNamespace(returncode=train(words[2:]))
    assert words[1:3] == ["-m", "monet"]
    return SimpleNamespace(returncode=main(words[3:]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The export and the text of the small model, which this test trains."""
    root = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(NOTEBOOKS)
        import quick_model  # pyright: ignore[reportMissingImports]

        patch.chdir(ROOT)
        patch.setattr(quick_model.subprocess, "run", in_this_process)
        patch.setattr(quick_model, "RUNS", root / "runs")
        patch.setattr(quick_model, "DATA", root / "data")
        found = quick_model.model_and_text()
        assert quick_model.model_and_text() == found, "it trains once"
    return found


@pytest.fixture
def notebook(folders, monkeypatch):
    """Runs a notebook in this process; returns its names."""

    def run(name: str) -> dict[str, Any]:
        monkeypatch.syspath_prepend(NOTEBOOKS)
        import quick_model  # pyright: ignore[reportMissingImports]

        monkeypatch.setattr(quick_model, "model_and_text", lambda: folders)
        names: dict[str, Any] = {"__name__": name}
        source = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
        exec(compile(source, name, "exec", dont_inherit=True), names)
        return names

    return run


def test_the_notebook_removes_a_language(notebook):
    names = notebook("remove_a_language")
    verdict = names["verdict"]
    assert verdict.passes and verdict.target_delta > 5 * abs(verdict.others_max_delta)
    assert names["without"]["italian"] > names["before"]["italian"] + 0.2
    assert abs(names["without"]["english"] - names["before"]["english"]) < 0.2


def test_the_notebook_finds_the_experts_of_a_domain(notebook):
    names = notebook("find_the_experts")
    changes = list(names["curve"].values())
    assert changes[-1]["php"] == max(changes[-1].values()) > 2 * changes[0]["php"], "more experts, more loss"
    # the weights by hand are those that the statistics add up
    _, weight_T = names["weights_of"](names["code"], *names["places"][0])
    assert weight_T.max() > 0 and torch.isfinite(weight_T).all()


def test_the_tutorial_runs(folders, tmp_path, monkeypatch, capsys):
    export, data = folders
    for link, target in [("runs/demo", export.parent), ("data/demo", data)]:
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "tutorial"}
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks].count("sh") == 7
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "tutorial", "exec", dont_inherit=True), names)
            continue
        for command in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(command)
            assert program == "monet" and main(words) == 0, command
    assert "1 of 1 masks hit their own domain hardest" in capsys.readouterr().out
    verdict = json.loads((tmp_path / "runs/tutorial/ablation/result.json").read_text())["domains"][0]
    assert verdict["name"] == "italian" and verdict["passes"]
    assert (tmp_path / "runs/tutorial/report/report.html").is_file()
