"""Cleans source code: removes licence headers, long comments, tables and generated files."""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass

MAX_LINE_CHARS = 160
MAX_COMMENT_CHARS = 200
MAX_COMMENT_SHARE = 0.25
MAX_DIGIT_SHARE = 0.08
MAX_DIRECTIVE_SHARE = 0.3
MIN_ASCII_SHARE = 0.99

LICENCE_WORDS = re.compile(
    r"copyright|licen[cs]e|\(c\)\s|©|all rights reserved|public domain|warrant(?:y|ies)|SPDX|permission is (?:hereby)?",
    re.IGNORECASE,
)
FORBIDDEN = re.compile(r"copyright|licensed under|general public|all rights reserved|\blicen[cs]e,? version", re.I)
_GENERATED = re.compile(r"do not edit|do not modify|generated (?:by|from|file|using)|auto-?generated", re.IGNORECASE)
_COPYRIGHT_LINE = re.compile(r"^.*(?:copyright.*\d{4}|\(c\)\s|©).*$", re.IGNORECASE | re.MULTILINE)
_RULE_LINE = re.compile(r"^[ \t]*(?:#|//|--|/?\*+)?[ \t]*[-=*#/~_+.]{4,}[ \t]*(?:\*/)?[ \t]*$\n?", re.MULTILINE)
_CREDIT_LINE = re.compile(r"^.*(?:@author|@since|@version|\w@\w+\.\w).*$\n?", re.IGNORECASE | re.MULTILINE)
_INHERITED = re.compile(r"^\W*inheritdoc\W*$", re.IGNORECASE)
_SNIPPET_MARK = re.compile(r"^[ \t]*//! ?\[.*\n", re.MULTILINE)


def _run_of(marker: str) -> str:
    return rf"(?:^[ \t]*{marker}.*(?:\n|\Z))+"


_C_BLOCK = r"^[ \t]*/\*(?:(?!\*/)[\s\S])*\*/[ \t]*;?[ \t]*(?:\n|\Z)"
_LUA_BLOCK = r"^[ \t]*--\[(=*)\[[\s\S]*?\]\1\][ \t]*(?:\n|\Z)"
_COMMENTS = {
    "cpp": re.compile(_C_BLOCK + "|" + _run_of("//"), re.MULTILINE),
    "java": re.compile(_C_BLOCK + "|" + _run_of("//"), re.MULTILINE),
    "javascript": re.compile(_C_BLOCK + "|" + _run_of("//"), re.MULTILINE),
    "php": re.compile(_C_BLOCK + "|" + _run_of(r"(?://|#(?!\[))"), re.MULTILINE),
    "lua": re.compile(_LUA_BLOCK + "|" + _run_of(r"--(?!\[=*\[)"), re.MULTILINE),
    "python": re.compile(_run_of("#"), re.MULTILINE),
}


@dataclass(frozen=True)
class CleanCode:
    """Cleaned text of one file, and the copyright lines removed from it."""

    text: str
    copyright_lines: tuple[str, ...]


def _shorten_docstrings(text: str) -> str:
    """Keep only the first line of every docstring: the domain is about code, not about the manual inside it."""
    lines = text.splitlines(keepends=True)
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    previous = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING):
            continue
        if token.type == tokenize.STRING and previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            prefix, quote, body = re.fullmatch(r"([A-Za-z]*)(\"\"\"|'''|\"|')([\s\S]*)\2", token.string).groups()  # pyright: ignore[reportOptionalMemberAccess]
            first = next((line.strip() for line in body.strip().splitlines()), "")
            edits.append((token.start, token.end, f"{prefix}{quote}{first}{quote}"))
        previous = token.type
    for (row, column), (end_row, end_column), new in reversed(edits):
        lines[row - 1 : end_row] = [lines[row - 1][:column] + new + lines[end_row - 1][end_column:]]
    return "".join(lines)


def _edit_comment(comment: str) -> str:
    kept = _RULE_LINE.sub("", _CREDIT_LINE.sub("", comment)) if comment.count("\n") > 1 else comment
    opened, closed = kept.count("/*"), kept.count("*/")
    broken = opened != closed
    if broken or len(kept) > MAX_COMMENT_CHARS or not re.search(r"[^\W_]{2}", kept) or _INHERITED.search(kept):
        return ""
    return kept


def _is_data(code: str) -> bool:
    solid = re.sub(r"\s", "", code)
    return sum(map(str.isdigit, solid)) > MAX_DIGIT_SHARE * len(solid)


def clean_code(raw: str, language: str) -> CleanCode | None:
    """Clean one source file.

    Args:
        raw: the file's text.
        language: key of the domain: cpp, java, javascript, lua, php or python.

    Returns:
        The cleaned file; None if it is generated, a table, mostly comment or preprocessor lines, has very long lines,
        does not tokenise (python) or still mentions its licence.
    """
    if _GENERATED.search(raw[:1500]):
        return None
    text = raw.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "").lstrip("\ufeff")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = _SNIPPET_MARK.sub("", re.sub(r"\A#!.*\n", "", text))
    if any(len(line) > MAX_LINE_CHARS for line in text.splitlines()):
        return None
    if language == "python":
        try:
            text = _shorten_docstrings(text)
        except (tokenize.TokenError, SyntaxError):
            return None
    copyright_lines: list[str] = []
    comment_chars = 0

    def edit(match: re.Match[str]) -> str:
        nonlocal comment_chars
        comment = match.group()
        if LICENCE_WORDS.search(comment):
            copyright_lines.extend(line.strip(" \t*/#-;") for line in _COPYRIGHT_LINE.findall(comment))
            return ""
        kept = _edit_comment(comment)
        comment_chars += len(kept)
        return kept

    text = _COMMENTS[language].sub(edit, text)
    text = re.sub(r"\n{4,}" if language == "python" else r"\n{3,}", "\n\n\n" if language == "python" else "\n\n", text)
    text = text.strip("\n") + "\n"
    lines = text.splitlines()
    directives = sum(line.lstrip().startswith("#") for line in lines) if language == "cpp" else 0
    if (
        FORBIDDEN.search(text)
        or _is_data(text)
        or comment_chars > MAX_COMMENT_SHARE * len(text)
        or directives > MAX_DIRECTIVE_SHARE * len(lines)
        or sum(map(str.isascii, text)) < MIN_ASCII_SHARE * len(text)
    ):
        return None
    return CleanCode(text, tuple(copyright_lines))
