"""Which parts of a file are English prose, as paragraphs whose lines carry their numbers."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator

Line = tuple[int, str]

FEWEST_WORDS = 4  # a shorter string is not prose
IGNORE = re.compile(r"prose: ignore\b(?P<names>[\w ,]*)")

# Code spans, targets of links, addresses, quotations and tags are not English.
_CODE = re.compile(
    r"``.+?``|`[^`]*`|(?<=\])\([^)\s]*\)|https?://\S+|\"[^\"]{1,200}\"|“[^”]{1,200}”|<[^<>]*>", re.DOTALL
)
_TOOL_COMMENT = re.compile(r"#\s*(noqa|pyright|type|fmt|pragma|prose):?")
_ITEM = re.compile(r"\s*([-*+•] |\d+\. |#+ |>|\||\w[\w., *]{0,40}: |\S.*?\s{3,}\S)")


def without_code(text: str) -> str:
    """The text with one letter for each piece that is not English; its line breaks stay, so that lines still count."""
    return _CODE.sub(lambda match: "X" + "\n" * match[0].count("\n"), text)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Where each sentence begins, and its text; a cell of a table ends one too."""
    start = 0
    for end in [*re.finditer(r"[.!?][)\"]?(?=\s)|\|", text), None]:
        stop = len(text) if end is None else end.end()
        lead = len(text[start:stop]) - len(text[start:stop].lstrip())
        yield start + lead, text[start:stop]
        start = stop


def paragraphs(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines in blocks that end at an empty line and before an item of a list, a heading or a row of a table."""
    block: list[Line] = []
    for number, text in lines:
        if block and (not text.strip() or _ITEM.match(text)):
            yield block
            block = []
        if text.strip():
            block.append((number, text))
    if block:
        yield block


def markdown(source: str) -> Iterator[list[Line]]:
    """Paragraphs outside of code blocks."""
    lines: list[Line] = []
    fence = ""
    for number, text in enumerate(source.splitlines(), start=1):
        mark = re.match(r"\s*(```+|~~~+)", text)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        lines.append((number, "" if fence or mark else text))
    yield from paragraphs(lines)


def comments(source: str, mark: str) -> Iterator[list[Line]]:
    """Comments that begin with `mark` and end with the line; comments on successive lines make paragraphs."""
    found = re.compile(rf"(?P<code>.*?(?:^|\s)){mark}+(?P<text>.*)")
    whole: list[Line] = []
    for number, text in enumerate(source.splitlines(), start=1):
        match = found.match(text)
        if match and match["code"].strip():
            yield [(number, match["text"])]
            match = None
        whole.append((number, match["text"] if match else ""))
    yield from paragraphs(whole)


def python(source: str, with_strings: bool) -> Iterator[list[Line]]:
    """Docstrings, comments and, on demand, other strings of several words."""
    yield from _python_comments(source)
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {
        node.body[0].value
        for node in nodes
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    raw = source.splitlines()
    inside: set[ast.AST] = set()  # parts of an f-string that was read as one text
    for node in nodes:
        if not isinstance(node, (ast.Constant, ast.JoinedStr)) or node in inside:
            continue
        inside.update(ast.walk(node))
        text = _text_of(node)
        mark = IGNORE.search("\n".join(raw[node.lineno - 1 : node.end_lineno]))
        if node in docstrings:
            for block in paragraphs(enumerate(text.split("\n"), start=node.lineno)):
                yield [*block, (block[-1][0], mark[0])] if mark else block
        elif with_strings and len(text.split()) >= FEWEST_WORDS:
            yield [(node.lineno, " ".join(text.split()) + (f" {mark[0]}" if mark else ""))]


def _python_comments(source: str) -> Iterator[list[Line]]:
    whole: list[Line] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        number, column = token.start
        if token.type != tokenize.COMMENT or (_TOOL_COMMENT.match(token.string) and not IGNORE.search(token.string)):
            continue
        if token.line[:column].strip():
            yield [(number, token.string.lstrip("#"))]
        else:
            gap = [(number, "")] if whole and number != whole[-1][0] + 1 else []
            whole += [*gap, (number, token.string.lstrip("#"))]
    yield from paragraphs(whole)


def _text_of(node: ast.AST) -> str:
    """The text of a string; a value inside an f-string counts as code."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(part) if isinstance(part, ast.Constant) else "`value`" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def blocks_of(path: str, source: str) -> Iterator[list[Line]]:
    """The prose of a file, by the end of its name."""
    if path.endswith(".md"):
        return markdown(source)
    if path.endswith(".py"):
        return python(source, with_strings=not path.startswith("tests/"))
    return comments(source, "//" if path.endswith((".cpp", ".h")) else "#")
