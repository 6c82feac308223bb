"""The prose linter reads only prose, and its baseline can only shrink."""

from __future__ import annotations

import pytest

from tools.prose.__main__ import ROOT, RULES, check, files, read_rules, verdict

WORDS, LONGEST = read_rules(RULES.read_text(encoding="utf-8"))

# The words of this text are on the list on purpose.
PYTHON = '''"""Nobody reads
this beside us."""

STRING = "told to do it"  # a comment alone
SHORT = "told it"


def beside(value):
    """Does `shall` and "anew" things.

    Args:
        value: of the caller,
            for
            ever. prose: ignore for ever
    """
    # noqa: beside
    raise ValueError(f"{value} shall not go " "on here")
'''


def found(path: str, source: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.rule) for finding in check(path, source, WORDS, LONGEST)]


def test_docstrings_comments_and_messages_are_read_and_code_is_not():
    wanted = [
        (1, "nobody"), (2, "beside"), (4, "alone"), (4, "told"), (12, "starts with of"), (17, "goes on"), (17, "shall"),
    ]  # fmt: skip
    assert sorted(found("monet/x.py", PYTHON)) == wanted
    in_tests = [one for one in wanted if one not in ((4, "told"), (17, "goes on"), (17, "shall"))]
    assert sorted(found("tests/x.py", PYTHON)) == in_tests, "a test's strings are not prose"


def test_markdown_is_read_outside_of_code_links_and_quotations():
    page = '# Beside\n\n`beside` [a](beside.md) https://x.org/beside "beside"\n\n```\nbeside\n```\nlies\nin it\n'
    assert found("docs/x.md", page) == [(1, "beside"), (8, "lies")]


def test_comments_of_other_files_are_read():
    assert found("configs/x.yaml", "key: beside  # Nobody knows\n# told\n") == [(1, "nobody"), (2, "told")]
    assert found("kernels/x.cpp", "int beside;  // alone\n") == [(1, "alone")]


def test_a_mark_switches_rules_off_for_its_paragraph():
    text = "Told beside.{}\n\nTold beside.\n"
    assert found("docs/x.md", text.format("")) == [(1, "beside"), (1, "told"), (3, "beside"), (3, "told")]
    told_is_off = text.format(" <!-- prose: ignore told -->")
    assert found("docs/x.md", told_is_off) == [(1, "beside"), (3, "beside"), (3, "told")]
    assert found("docs/x.md", text.format(" <!-- prose: ignore -->")) == [(3, "beside"), (3, "told")]
    assert found("x.py", '"""Told beside."""  # prose: ignore\n') == []
    assert found("x.py", 'x = "this is told beside"  # prose: ignore beside\n') == [(1, "told")]


@pytest.mark.parametrize("words, count", [(LONGEST, 0), (LONGEST + 1, 1)])
def test_a_long_sentence_is_found(words, count):
    text = f"Short. {'word ' * (words - 1)}\nend. {'| cell ' * 50}|"
    assert [rule for _, rule in found("docs/x.md", text)] == ["long sentence"] * count


def test_the_baseline_holds_each_file_and_asks_to_be_lowered():
    assert verdict({"a": 2, "b": 1}, {"a": 2, "b": 1}) == ([], "")
    assert verdict({"a": 1, "b": 2}, {"a": 2, "b": 1})[0] == ["b"]
    worse, note = verdict({"a": 1}, {"a": 2})
    assert not worse and note.startswith("1 fewer") and "--update" in note


def test_the_word_list_reads_all_kinds_of_files():
    names = files(ROOT, RULES.read_text(encoding="utf-8"))
    wanted = {
        "README.md",
        "docs/architecture.md",
        "monet/masks/expert_mask.py",
        "kernels/dispatch.py",
        "configs/demo.yaml",
        "Makefile",
    }
    assert wanted <= set(names) and "CHANGELOG.md" not in names and not any(".venv" in name for name in names)


def test_every_rule_has_its_own_name():
    assert len({rule.name for rule in WORDS}) == len(WORDS)
