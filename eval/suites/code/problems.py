"""Reads problems in MultiPL-E's schema from files or from the Hugging Face hub, and assembles programs.

A row has `name, language, prompt, doctests, original, prompt_terminology, tests, stop_tokens` (arXiv 2208.08227;
nuprl/MultiPL-E). Rows of OpenAI's HumanEval (`task_id, prompt, test, entry_point`) are read as Python problems, because
the hub's current revision of MultiPL-E holds none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monet.errors import ConfigError, DataError
from monet.eval.core.tables import read_parquet
from monet.json_text import parse_json, read_json

# Our name of each language -> MultiPL-E's code.
CODES = {"python": "py", "cpp": "cpp", "java": "java", "javascript": "js", "lua": "lua", "php": "php"}
_LANGUAGE_OF = {**{code: name for name, code in CODES.items()}, **{name: name for name in CODES}, "c++": "cpp"}
HUMANEVAL = "openai/openai_humaneval"
_PYTHON_STOPS = ["\ndef", "\n#", "\nif", "\nclass"]
_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet")


def language_of(name: str) -> str | None:
    """Our name of the language of a label or of a MultiPL-E code; None if it is not one of the six languages."""
    return _LANGUAGE_OF.get(name.lower())


_LONGEST_LINE = 1 << 24


@dataclass(frozen=True)
class Problem:
    """A function to complete, and its tests.

    Args:
        name: unique within its language.
        language: a key of `CODES`.
        prompt: text of the file up to the function's body.
        tests: text after the body; the program exits with code 0 if the body is right.
        stop_tokens: strings that end a completion; the completion stops before the first of them.
        variant: how the prompt was translated, e.g. "transform/reworded".
    """

    name: str
    language: str
    prompt: str
    tests: str
    stop_tokens: tuple[str, ...]
    variant: str = ""

    @property
    def text(self) -> str:
        """Text that the model continues: the prompt, stripped of white space as in BigCode's harness."""
        return self.prompt.strip()

    def completion(self, generated: str) -> tuple[str, bool]:
        """Cut generated text before its first stop token; also say whether there was one."""
        ends = [end for token in self.stop_tokens if (end := generated.find(token)) >= 0]
        return (generated[: min(ends)], True) if ends else (generated, False)

    def program(self, completion: str) -> str:
        """The file that is run: prompt, completion, a line break, tests."""
        return f"{self.text}{completion}\n{self.tests}"

    @property
    def digest(self) -> str:
        """Hexadecimal hash of everything that a completion and its outcome depend on."""
        content = json.dumps([self.language, self.prompt, self.tests, self.stop_tokens])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class ProblemSet:
    """Problems by language.

    Args:
        problems: problems of every requested language; the list may be empty.
        missing: why a language has no problems.
        ignored: number of rows in other languages.
        source: where the problems came from.
        whole: fingerprint of the problems before a limit; empty if there was no limit.
    """

    problems: dict[str, list[Problem]]
    missing: dict[str, str]
    ignored: dict[str, int]
    source: str
    whole: str = ""

    def first(self, limit: int | None) -> ProblemSet:
        """At most `limit` problems per language, the first ones that were read.

        Raises:
            ConfigError: the limit is below 1.
        """
        if limit is not None and limit < 1:
            raise ConfigError(f"limit {limit} must be at least 1; omit it to take all problems")
        chosen = {language: found[:limit] for language, found in self.problems.items()}
        return ProblemSet(chosen, self.missing, self.ignored, self.source, self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """Equal for equal problems under any limit. Random controls depend on it, so a limit can be raised."""
        content = json.dumps({name: [one.digest for one in found] for name, found in self.problems.items()})
        return self.whole or hashlib.sha256(content.encode()).hexdigest()

    @property
    def description(self) -> dict[str, Any]:
        """Description of the problems, JSON-able: number, variants and hash of each language's problems."""
        return {
            "source": self.source,
            "ignored": self.ignored,
            "languages": {
                language: {
                    "problems": len(found),
                    "variants": sorted({problem.variant for problem in found}),
                    "sha256": hashlib.sha256("".join(problem.digest for problem in found).encode()).hexdigest(),
                }
                for language, found in self.problems.items()
            },
        }


def check_languages(languages: Sequence[str]) -> list[str]:
    """Our names of the languages, in the given order.

    Raises:
        ConfigError: a language is unknown or repeated, or the list is empty.
    """
    found = [language_of(name) for name in languages]
    if None in found:
        raise ConfigError(f"language {languages[found.index(None)]!r} is not among {', '.join(CODES)}")
    if not found or len(set(found)) != len(found):
        raise ConfigError(f"languages must be one or more different languages, got {list(languages)}")
    return [name for name in found if name]


def read_problems(source: str | os.PathLike[str], languages: Sequence[str], benchmark: str = "humaneval") -> ProblemSet:
    """Read problems from a file, a folder or the hub.

    Args:
        source: a .json (one list), .jsonl, .jsonl.gz or .parquet file, a folder of such files, or a data set's name on
            the hub that has configurations like humaneval-lua.
        languages: names or codes of languages.
        benchmark: humaneval or mbpp; chooses configurations on the hub; ignored for files.

    Raises:
        ConfigError: a language is unknown, or there is neither such a file nor such a data set.
        DataError: a row lacks a field, or a name occurs twice in a language.
    """
    wanted = check_languages(languages)
    path = Path(source)
    if path.exists():
        return _collect(_rows_of_files(path), wanted, str(path))
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise ConfigError(f"problems {source}: no such file or folder; for MultiPL-E from the hub use nuprl/MultiPL-E")
    return _from_hub(str(source), wanted, benchmark)


def _rows_of_files(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    files = sorted(file for file in path.rglob("*") if file.name.endswith(_SUFFIXES)) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"{path}: no file ends in {', '.join(_SUFFIXES)}; put MultiPL-E's prompt files into this folder"
        )
    for file in files:
        try:
            yield from ((f"{file}, row {number}", row) for number, row in enumerate(_read_file(file), start=1))
        except (ValueError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file}: cannot be read ({error})") from None


def _read_file(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.name.endswith(".parquet"):
        yield from read_parquet(file).to_pylist()
    elif file.name.endswith(".json"):
        content = read_json(file)
        if not isinstance(content, list):
            raise DataError(f"{file}: does not hold a list; MultiPL-E's .json files hold one list of problems")
        yield from content
    else:
        number = 0
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8") as lines:
            while line := lines.readline(_LONGEST_LINE + 1):
                if len(line) > _LONGEST_LINE:  # a small compressed file can expand to many gigabytes
                    raise DataError(f"{file}: a line of more than {_LONGEST_LINE} characters; no problem is that long")
                number += 1
                if line.strip():
                    yield parse_json(line, f"{file}, line {number}")


def _from_hub(name: str, wanted: Sequence[str], benchmark: str) -> ProblemSet:
    from datasets import load_dataset

    problems: dict[str, list[Problem]] = {}
    missing: dict[str, str] = {}
    for language in wanted:
        tries: list[tuple[str, str | None]] = [(name, f"{benchmark}-{CODES[language]}")]
        if language == "python" and benchmark == "humaneval":
            tries.append((HUMANEVAL, None))
        for data_set, configuration in tries:
            try:
                rows = load_dataset(data_set, configuration, split="test")
            except Exception as error:
                # the library's errors have no common base: no network, no such data set, no such configuration
                shown = f"{data_set} {configuration or ''}".strip()
                missing[language] = f"{shown}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            else:
                labelled = ((f"{data_set}, row {number}", row) for number, row in enumerate(rows, start=1))
                problems |= _collect(labelled, [language], name).problems  # pyright: ignore[reportArgumentType]
                missing.pop(language, None)
                break
    if not problems:
        raise ConfigError(
            f"problems {name}: neither a file nor a data set that can be read ({next(iter(missing.values()))}); "
            "without a network, give a folder with MultiPL-E's prompt files"
        )
    return ProblemSet({language: problems.get(language, []) for language in wanted}, missing, {}, name)


def _collect(rows: Iterator[tuple[str, Mapping[str, Any]]], wanted: Sequence[str], source: str) -> ProblemSet:
    problems: dict[str, dict[str, Problem]] = {language: {} for language in wanted}
    ignored: dict[str, int] = {}
    for where, row in rows:
        problem = _problem(where, row)
        if problem.language not in problems:
            ignored[problem.language] = ignored.get(problem.language, 0) + 1
            continue
        if problem.name in problems[problem.language]:
            raise DataError(
                f"{where}: problem {problem.name!r} occurs twice in {problem.language}; give only one variant of the "
                "prompts (e.g. the reworded ones)"
            )
        problems[problem.language][problem.name] = problem
    missing = {language: f"no problem in {source}" for language, found in problems.items() if not found}
    return ProblemSet(
        {language: list(found.values()) for language, found in problems.items()}, missing, ignored, source
    )


def _problem(where: str, row: Any) -> Problem:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {type(row).__name__} instead of an object with MultiPL-E's fields")
    if "task_id" in row and "entry_point" in row:
        row = {
            "name": row["task_id"],
            "language": "py",
            "prompt": row.get("prompt"),
            "tests": f"{row.get('test', '')}\ncheck({row['entry_point']})\n" if row.get("test") else None,
            "stop_tokens": _PYTHON_STOPS,
        }
    texts = {field: row.get(field) for field in ("name", "language", "prompt", "tests")}
    for field, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: field {field!r} is {value!r}, but must be text, as in MultiPL-E's problems")
    stops = row.get("stop_tokens")
    if not isinstance(stops, Sequence) or isinstance(stops, str) or not all(isinstance(t, str) and t for t in stops):
        raise DataError(f"{where}: field 'stop_tokens' is {stops!r}, but must be a list of texts")
    variant = "/".join(str(row[field]) for field in ("doctests", "prompt_terminology") if row.get(field))
    language = language_of(str(texts["language"])) or str(texts["language"])
    return Problem(str(texts["name"]), language, str(texts["prompt"]), str(texts["tests"]), tuple(stops), variant)
