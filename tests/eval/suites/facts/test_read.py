"""Files of facts: what identifies a fact, and refusals that name the line and the fix."""

from __future__ import annotations

import json
import os

import pytest

from monet.errors import ConfigError, DataError
from monet.eval.suites.facts import read
from monet.eval.suites.facts.read import read_facts
from tests.eval.suites.facts.conftest import all_rows, row, write_rows


def test_a_line_becomes_a_question(facts_file):
    facts = read_facts([facts_file])
    assert {domain: len(own) for domain, own in facts.of_domain.items()} == {"sides": 16, "centre": 8}
    first = facts.questions[0]
    assert first.prompt == "left0 left1" and first.options == ("middle0", "right0", "left0") and first.answer == 2
    assert first.text == "left0 left1 left0" and first.phrasing == "0"
    assert facts.description["facts"] == 12 and facts.description["lines"] == 24
    assert facts.description["files"][0]["name"] == "facts.jsonl"


def test_choices_may_contain_the_answer(tmp_path):
    rows = all_rows()
    with_answer = [{**one, "choices": [one["choices"][0], one["answer"], one["choices"][1]]} for one in rows]
    found = [read_facts([write_rows(tmp_path / f"{n}", of)]).questions for n, of in enumerate((rows, with_answer))]
    assert found[0] == found[1]


def test_what_is_one_fact(tmp_path):
    def units(*rows):
        return [one.fact for one in read_facts([write_rows(tmp_path / "facts", list(rows))]).questions]

    a, b, c = units(row("left", 0), row("left", 0, prompt="right1", phrasing="b"), row("left", 1))
    assert a == b != c, "the same subject and answer of a relation"
    a, b, c = units(row("left", 0, subject=None), row("left", 0, prompt="right1", subject="x"), row("left", 1))
    assert len({a, b, c}) == 3, "another subject is another fact"
    a, b, c = units(row("left", 0), row("left", 0, prompt="right1", relation="other"), row("left", 1))
    assert len({a, b, c}) == 3, "another relation is another fact"
    a, b, c = units(row("left", 0, fact="f"), row("left", 1, relation="other", fact="f"), row("left", 2))
    assert a == b != c, "the key `fact` joins relations"


def test_a_limit_takes_whole_facts_of_each_relation(facts_file):
    facts = read_facts([facts_file], limit=2)
    assert len(facts.questions) == 12 and {one.options[-1][-1] for one in facts.questions} == {"0", "1"}
    assert facts.fingerprint != read_facts([facts_file]).fingerprint
    with pytest.raises(ConfigError, match="limit 0 must be at least 1"):
        read_facts([facts_file], limit=0)


def test_the_fingerprint_does_not_depend_on_the_order_of_lines(tmp_path):
    rows = all_rows()
    one, other = (write_rows(tmp_path / name, of) for name, of in (("a", rows), ("b", rows[::-1])))
    assert read_facts([one]).fingerprint == read_facts([other]).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anwser": "x"}, "unknown key 'anwser'; remove it, or correct it to one of prompt, answer"),
        ({"choices": []}, "choices is \\[\\]; give a list of at least one wrong option"),
        ({"choices": "middle0"}, "choices is 'middle0'; give a list"),
        ({"choices": ["left0"]}, "choices has only the answer 'left0'; add a wrong option"),
        ({"choices": ["left0", "right0", "left0"]}, "the answer 'left0' is 2 times in choices; keep one"),
        ({"choices": ["right0", "right0"]}, "'right0' is twice in choices; keep one"),
        ({"choices": ["right0", 3]}, r"choices\[1\] is 3; give a text with words"),
        ({"choices": ["x" + str(n) for n in range(101)]}, "101 choices; give at most 100"),
        ({"answer": None}, "answer is None; give a text with words"),
        ({"answer": " left0"}, "answer ' left0' begins or ends with white space; remove it"),
        ({"prompt": "left0 "}, "prompt 'left0 ' begins or ends with white space"),
        ({"prompt": ""}, "prompt is ''; give a text"),
        ({"domain": "a/b"}, "domain 'a/b' is no name; use at most 100 printable characters without a slash"),
        ({"relation": "r" * 101}, "is no name; use at most 100 printable characters"),
        ({"phrasing": True}, "phrasing is True; give a text"),
        ({"prompt": "right1", "subject": "left1", "answer": "left1"}, None),
    ],
)
def test_lines_that_cannot_be_asked(tmp_path, changes, message):
    path = write_rows(tmp_path / "facts", [row("left", 3), row("left", 2), row("left", 0, **changes)])
    if message is None:
        assert len(read_facts([path]).questions) == 3
        return
    with pytest.raises(DataError, match=f"facts: line 3[: ].*{message}"):
        read_facts([path])


def test_a_missing_key(tmp_path):
    content = row("left", 0)
    del content["relation"]
    with pytest.raises(DataError, match="line 1 has no 'relation'; add it"):
        read_facts([write_rows(tmp_path / "facts", [content])])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (row("left", 0), "line 2 repeats the prompt and the answer of .*line 1; remove one of the two lines"),
        (row("left", 0, prompt="left0  left1", choices=["right2"]), "line 2 repeats the prompt and the answer"),
        (row("left", 0, domain="other"), "line 2 repeats the prompt"),
        (row("left", 0, prompt="right1"), "line 2 asks the fact of .*line 1 in the same phrasing '0'; remove one"),
    ],
)
def test_repeated_lines(tmp_path, second, message):
    with pytest.raises(DataError, match=message):
        read_facts([write_rows(tmp_path / "facts", [row("left", 0), second])])


def test_the_same_file_twice(facts_file):
    with pytest.raises(DataError, match=r"line 1 repeats the prompt and the answer of .*line 1"):
        read_facts([facts_file, facts_file])


def test_files_that_hold_no_facts(tmp_path, monkeypatch):
    for content, message in [
        (b"\n \n", "holds no line; write one JSON object on each line"),
        (b"", "holds no line"),
        (b"[1]\n", "line 1 holds a list; write an object with prompt, answer"),
        (b"{\n", "line 1: no JSON"),
        (b"\xff\n", "line 1: no JSON"),
        (b"[" * 100_000 + b"\n", "line 1: no JSON"),
    ]:
        path = tmp_path / "facts"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_facts([path])
    with pytest.raises(DataError, match="no readable file of facts"):
        read_facts([tmp_path / "absent"])
    with pytest.raises(DataError, match=r"not a file|no readable file"):
        read_facts([tmp_path])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a file; name a file of JSON lines"):
        read_facts([tmp_path / "pipe"])
    with pytest.raises(ConfigError, match="name at least one file"):
        read_facts([])
    monkeypatch.setattr(read, "MAX_LINES", 3)
    with pytest.raises(DataError, match="more than 3 lines; divide the file"):
        read_facts([write_rows(tmp_path / "long", all_rows())])
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 100)
    with pytest.raises(DataError, match="line 1 is longer than 100 bytes; write one fact on each line"):
        read_facts([write_rows(tmp_path / "long", all_rows())])


def test_a_domain_of_one_fact_has_no_interval(tmp_path):
    rows = [row("left", 0), row("left", 1), row("middle", 0)]
    with pytest.raises(DataError, match="domain 'centre' has one fact, and an interval needs two; add facts"):
        read_facts([write_rows(tmp_path / "facts", rows)])


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "facts"
    lines = [json.dumps(row("left", number)) for number in range(2)]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert len(read_facts([path]).questions) == 2
