"""Harmful files give one of Monet's errors."""

import gzip

import pytest

from monet.errors import DataError, MonetError
from monet.eval.attribution import selection
from monet.eval.attribution.statistics.scored import read_scored
from monet.eval.reporting import command as report
from monet.eval.suites.code.problems import read_problems
from monet.eval.suites.code.results import CodeResult
from monet.eval.suites.questions.local_data import _json_rows
from monet.eval.suites.toxicity.general import read_general
from monet.eval.suites.toxicity.prompts import read_prompts
from monet.eval.suites.toxicity.results import ToxicityResult

DEEP = "[" * 200_000
READERS = {
    "report": lambda folder: report.load(folder / "result.json"),
    "code result": lambda folder: CodeResult.load(folder / "result.json"),
    "toxicity result": lambda folder: ToxicityResult.load(folder / "result.json"),
    "general averages": lambda folder: read_general([folder / "result.json"]),
    "benchmark list": lambda folder: _json_rows(folder / "result.json"),
    "benchmark lines": lambda folder: _json_rows(folder / "lines.jsonl"),
    "prompts": lambda folder: read_prompts([folder / "lines.jsonl"], "all"),
    "scored text": lambda folder: read_scored(folder / "lines.jsonl", None, 8),
    "masks": lambda folder: selection.load_masks(folder),
    "problem list": lambda folder: read_problems(str(folder / "result.json"), ["python"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_json_that_is_nested_too_deeply(reader, tmp_path):
    for name in ("result.json", "lines.jsonl", selection.SUMMARY_NAME):
        (tmp_path / name).write_text(DEEP)
    with pytest.raises(MonetError):
        READERS[reader](tmp_path)


def test_a_packed_line_without_end(tmp_path):
    with gzip.open(tmp_path / "humaneval-py.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(32):
            file.write(b" " * (1 << 20))
    with pytest.raises(DataError, match="a line of more than 16777216 characters"):
        read_problems(str(tmp_path), ["python"])


def test_a_label_is_no_markup_and_no_escape(tmp_path, capsys):
    labels = {"[/red]": 1, "\x1b[2Jblue": 2, "[link=https://example.org]x": 3}
    entries = {name: {"experts": n, "share": 0.1, "experts_per_group": [n]} for name, n in labels.items()}
    summary = {"labels": entries, "ratio": 2.0, "generalists": 0, "experts": 9, "never_active": 0}
    selection._print(summary, selection.Ratio(2.0), 1, tmp_path)
    shown = capsys.readouterr().out
    assert "[/red]" in shown and "\x1b" not in shown and "[link=https" in shown
