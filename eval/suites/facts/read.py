"""Reads facts from JSON lines, and refuses what cannot be asked, with the number of the line and the fix."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monet.errors import ConfigError, DataError
from monet.files import sha256_file
from monet.json_text import parse_json

MAX_LINE_BYTES = 1 << 20
MAX_LINES = 1_000_000
MAX_CHOICES = 100
MAX_NAME = 100  # characters of a domain, relation or phrasing: they are names in tables

_NEEDED = ("prompt", "answer", "choices", "domain", "relation", "phrasing")
_OPTIONAL = ("subject", "fact")


@dataclass(frozen=True)
class Question:
    """One line of a file of facts: a fact in one phrasing.

    Args:
        id: hash of the prompt and the answer; no two lines have the same.
        prompt: the text before the answer, without the space between them.
        options: the wrong options, then the answer. If two options are equally likely, the answer does not count as
            the likeliest.
        domain, relation, phrasing: as in the file.
        fact: the fact that the line asks about. All lines of a domain with the same fact are resampled together.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    domain: str
    relation: str
    phrasing: str
    fact: str

    @property
    def answer(self) -> int:
        """Index of the right option."""
        return len(self.options) - 1

    @property
    def text(self) -> str:
        """The prompt with its answer: the text that masks may not be chosen on."""
        return f"{self.prompt} {self.options[-1]}"


@dataclass(frozen=True)
class Facts:
    """The questions of some files.

    Args:
        questions: in the order of the files.
        description: files with their SHA-256, the limit, and the numbers of facts and lines; JSON-able.
    """

    questions: list[Question]
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def of_domain(self) -> dict[str, list[Question]]:
        """Questions by domain; domains in the order in which they first occur."""
        found: dict[str, list[Question]] = {}
        for question in self.questions:
            found.setdefault(question.domain, []).append(question)
        return found

    @property
    def fingerprint(self) -> str:
        """A digest that is equal for equal questions in any order; random controls depend on it."""
        return fingerprint(sorted(self.questions, key=lambda question: question.id))


def fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 over prompts and options, in their order. Names of domains and facts do not change outcomes."""
    content = [[question.prompt, question.options] for question in questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_facts(files: Sequence[Path], limit: int | None = None) -> Facts:
    """Read facts from files of JSON lines.

    A line has the keys `prompt`, `answer`, `choices`, `domain`, `relation` and `phrasing`, and may have `subject` and
    `fact`. `choices` are the wrong options; they may also contain the answer. A fact is everything in a domain with the
    same `fact`. Without this key it is everything in a relation with the same `subject` and `answer`.

    Args:
        files: files, at least one.
        limit: at most this many facts of each relation, the first ones, in all their phrasings; None takes all.

    Raises:
        DataError: a file is missing or empty, a line cannot be asked or repeats another, or a domain has one fact; the
            message names file and line.
        ConfigError: no file is given, or the limit is below 1.
    """
    if not files:
        raise ConfigError("name at least one file of facts (--facts FILE)")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit} must be at least 1; omit it to take all facts")
    seen: dict[tuple[str, ...], str] = {}
    taken: dict[tuple[str, str], set[str]] = {}
    questions = []
    for path in map(Path, files):
        read = 0
        for where, row in _rows(path):
            read += 1
            question, named = _question(row, where)
            _refuse_repeats(question, named, where, seen)
            facts = taken.setdefault((question.domain, question.relation), set())
            if question.fact in facts or limit is None or len(facts) < limit:
                facts.add(question.fact)
                questions.append(question)
        if not read:
            raise DataError(f"{path}: holds no line; write one JSON object on each line, or name another file")
    found = Facts(questions)
    for domain, own in found.of_domain.items():
        if len({question.fact for question in own}) < 2:
            raise DataError(
                f"domain {domain!r} has one fact, and an interval needs two; add facts to it, raise the limit, or "
                "remove its lines"
            )
    description = {
        "files": [{"name": Path(path).name, "sha256": sha256_file(path)} for path in files],
        "fingerprint": found.fingerprint,
        "limit": limit,
        "facts": len({(question.domain, question.fact) for question in questions}),
        "lines": len(questions),
    }
    return Facts(questions, description)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object of each line that is not blank, with its file and number for messages."""
    try:
        # Non-blocking, since a pipe without a writer would block the program without end.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{path}: no readable file of facts ({error.strerror}); check the path") from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DataError(f"{path}: not a file; name a file of JSON lines")
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}: line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{where} is longer than {MAX_LINE_BYTES} bytes; write one fact on each line")
            if number > MAX_LINES:
                raise DataError(f"{path}: more than {MAX_LINES} lines; divide the file, and give its parts separately")
            if line.strip():
                row = parse_json(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)
                if not isinstance(row, dict):
                    raise DataError(f"{where} holds a {type(row).__name__}; write an object with {', '.join(_NEEDED)}")
                yield where, row


def _question(row: dict[str, Any], where: str) -> tuple[Question, bool]:
    """The question of a line, and whether the line names its fact or its subject."""
    if unknown := sorted(row.keys() - {*_NEEDED, *_OPTIONAL}):
        raise DataError(
            f"{where} has the unknown key {unknown[0]!r}; remove it, or correct it to one of "
            f"{', '.join((*_NEEDED, *_OPTIONAL))}"
        )
    if missing := [key for key in _NEEDED if key not in row]:
        raise DataError(f"{where} has no {missing[0]!r}; add it")
    prompt, answer = (_text(row[key], key, where) for key in ("prompt", "answer"))
    domain, relation = (_name(row[key], key, where) for key in ("domain", "relation"))
    phrasing = row["phrasing"]
    phrasing = str(phrasing) if type(phrasing) is int else _name(phrasing, "phrasing", where)
    wrong = _wrong(row["choices"], answer, where)
    subject = _text(row["subject"], "subject", where) if row.get("subject") is not None else ""
    fact = _text(row["fact"], "fact", where) if row.get("fact") is not None else None
    unit = json.dumps([fact] if fact is not None else [relation, subject, answer], ensure_ascii=False)
    id = hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()[:24]
    question = Question(id, prompt, (*wrong, answer), domain, relation, phrasing, unit)
    return question, bool(subject or fact is not None)


def _wrong(choices: Any, answer: str, where: str) -> list[str]:
    if not isinstance(choices, list) or not choices:
        raise DataError(f"{where}: choices is {_shown(choices)}; give a list of at least one wrong option")
    if len(choices) > MAX_CHOICES:
        raise DataError(f"{where}: {len(choices)} choices; give at most {MAX_CHOICES}")
    options = [_text(choice, f"choices[{number}]", where) for number, choice in enumerate(choices)]
    if options.count(answer) > 1:
        raise DataError(f"{where}: the answer {_shown(answer)} is {options.count(answer)} times in choices; keep one")
    wrong = [option for option in options if option != answer]
    if not wrong:
        raise DataError(f"{where}: choices has only the answer {_shown(answer)}; add a wrong option")
    seen: set[str] = set()
    for option in wrong:
        if option in seen:
            raise DataError(f"{where}: {_shown(option)} is twice in choices; keep one")
        seen.add(option)
    return wrong


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {_shown(value)}; give a text with words")
    if value != value.strip():
        raise DataError(
            f"{where}: {key} {_shown(value)} begins or ends with white space; remove it (the suite puts one space "
            "between prompt and answer)"
        )
    return value


def _name(value: Any, key: str, where: str) -> str:
    name = _text(value, key, where)
    if len(name) > MAX_NAME or "/" in name or not name.isprintable():
        raise DataError(
            f"{where}: {key} {_shown(name)} is no name; use at most {MAX_NAME} printable characters without a slash"
        )
    return name


def _shown(value: Any) -> str:
    """A value of a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refuse_repeats(question: Question, named: bool, where: str, seen: dict[tuple[str, ...], str]) -> None:
    """Refuse a line that asks what another line asks."""
    text = (" ".join(question.prompt.split()), question.options[-1])
    if text in seen:
        raise DataError(f"{where} repeats the prompt and the answer of {seen[text]}; remove one of the two lines")
    asked = (question.domain, question.relation, question.fact, question.phrasing)
    if named and asked in seen:
        raise DataError(
            f"{where} asks the fact of {seen[asked]} in the same phrasing {question.phrasing!r}; remove one of the two "
            "lines, or give each phrasing its own name"
        )
    seen[text] = where
    if named:
        seen[asked] = where
