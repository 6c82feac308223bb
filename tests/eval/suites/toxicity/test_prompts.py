"""Files in the published schemas of the data sets, and refusals."""

import csv

import pyarrow
import pytest
from pyarrow import parquet

from monet.errors import ConfigError, DataError
from monet.eval.suites.toxicity.prompts import read_prompts
from tests.eval.suites.toxicity.conftest import real_row, write_lines


@pytest.fixture
def real(tmp_path):
    rows = [real_row(i, f"text {i}", i / 10, challenging=i >= 7) for i in range(10)]
    rows.append(real_row(10, "text 10", None))
    return write_lines(tmp_path / "prompts.jsonl", rows)


def test_real_toxicity_prompts(real):
    read = read_prompts([real])
    assert [prompt.text for prompt in read.prompts] == [f"text {i}" for i in range(11)]
    first, toxic, unscored = read.prompts[0], read.prompts[5], read.prompts[10]
    assert (first.id, first.group, first.toxicity, first.challenging) == ("prompts:1", "non-toxic", 0.0, False)
    assert (first.continuation, first.continuation_toxicity) == (" bread", 0.25)
    assert toxic.group == "toxic" and toxic.toxicity == 0.5
    assert unscored.group == "no score given" and unscored.toxicity is None
    assert read.groups == ["non-toxic", "toxic", "no score given"]
    assert read.description["prompts"] == 11 and len(read.description["files"][0]["sha256"]) == 64


def test_parts_share_no_text_and_the_challenging_ones_are_evaluated(real, tmp_path):
    evaluated = {prompt.text for prompt in read_prompts([real], "evaluate").prompts}
    identified = {prompt.text for prompt in read_prompts([real], "identify").prompts}
    assert evaluated == {"text 7", "text 8", "text 9"} and not evaluated & identified
    assert len(evaluated | identified) == 11
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"line {i}" for i in range(100)))
    halves = [{prompt.text for prompt in read_prompts([lines], part).prompts} for part in ("evaluate", "identify")]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 100 and 30 < len(halves[0]) < 70
    with pytest.raises(DataError, match="subset 'identify' has no prompt; use --subset all"):
        read_prompts([write_lines(tmp_path / "all.jsonl", [real_row(0, "x", 0.9, challenging=True)])], "identify")


def test_lines_repeat_and_limit(tmp_path):
    for name in ("rtp_threat.txt", "rtp_insult.txt"):
        (tmp_path / name).write_text("\n".join([f"only {name}", "", *(f"both {i}" for i in range(9))]), "utf-8")
    files = [tmp_path / "rtp_threat.txt", tmp_path / "rtp_insult.txt"]
    read = read_prompts(files)
    assert len(read.prompts) == 11 and read.description["repeats_left_out"] == 9
    assert read.groups == ["rtp_threat", "rtp_insult"] and read.prompts[1].id == "rtp_threat:3"
    some = read_prompts(files, limit=4)
    assert [prompt.text for prompt in some.prompts] == [read.prompts[i].text for i in (0, 2, 5, 8)]


def test_ids_are_unique_over_files_of_one_name(tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "prompts.txt")
        files[-1].write_text(f"of {folder}\nboth\n")
    assert [prompt.id for prompt in read_prompts(files).prompts] == ["prompts-1:1", "prompts-1:2", "prompts-2:1"]


def test_a_text_may_hold_other_line_ends(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [real_row(0, "one\u2028two\x85three", 0.2)])
    path.write_text(path.read_text().replace("\\u2028", "\u2028"), encoding="utf-8")
    assert read_prompts([path]).prompts[0].text == "one\u2028two\x85three"


def test_toxigen_prompts_in_all_their_files(tmp_path):
    line = "- the first line\\n- the second\\n-"
    (tmp_path / "hate_trees_1k.txt").write_text(f"{line}\n{line} again\n")
    with open(tmp_path / "neutral_trees_1k.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text"])
        writer.writeheader()
        writer.writerow({"text": "- calm\\n-"})
    parquet.write_table(pyarrow.table({"text": ["- other\\n-"]}), tmp_path / "neutral_rocks_1k-00000.parquet")
    rows = [
        {"prompt": "- some\\n-", "generation": " words", "generation_method": "ALICE", "group": "trees",
         "prompt_label": 1, "roberta_prediction": 0.99},
        {"prompt": "- more\\n-", "generation": " words", "generation_method": "top-k", "group": "trees",
         "prompt_label": 0, "roberta_prediction": 0.01},
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    read = read_prompts(sorted(tmp_path.iterdir())).prompts
    assert [(prompt.text, prompt.group, prompt.toxicity) for prompt in read] == [
        ("- the first line\n- the second\n-", "hate", 1.0),
        ("- the first line\n- the second\n- again", "hate", 1.0),
        ("- other\n-", "neutral", 0.0),
        ("- calm\n-", "neutral", 0.0),
        ("- some\n-", "hate", 1.0),
        ("- more\n-", "neutral", 0.0),
    ]
    assert (read[4].continuation, read[4].continuation_toxicity) == (" words", 0.99)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": {"text": ""}}\n', "row 1: the prompt's text is ''"),
        ("a.jsonl", '{"question": "?"}\n', r"row 1 has the keys \['question'\]"),
        ("a.jsonl", "{broken\n", "line 1: no JSON"),
        ("a.jsonl", "[1]\n", "line 1 holds a value of type list"),
        ("a.jsonl", '{"prompt": {"text": "x", "toxicity": 7}}\n', "score 7.0 must be from 0 to 1"),
        ("a.jsonl", '{"prompt": {"text": "x", "toxicity": "high"}}\n', "score 'high' is not a number"),
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.parquet", "nothing", "not a readable parquet file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_prompts([tmp_path / name])


def test_no_file_and_no_limit(tmp_path):
    with pytest.raises(DataError, match="no such file of prompts"):
        read_prompts([tmp_path / "absent.jsonl"])
    with pytest.raises(ConfigError, match="at least one file"):
        read_prompts([])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa\n")
    with pytest.raises(DataError, match="byte 0 is not UTF-8"):
        read_prompts([tmp_path / "a.txt"])
    (tmp_path / "b.txt").write_text("x\n")
    with pytest.raises(ConfigError, match="limit 0"):
        read_prompts([tmp_path / "b.txt"], limit=0)
