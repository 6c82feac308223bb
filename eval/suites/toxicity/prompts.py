"""Prompts of RealToxicityPrompts and ToxiGen, in the files that their authors publish, and plain lines of text."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from monet.errors import ConfigError, DataError
from monet.eval.core.tables import read_parquet
from monet.files import sha256_file
from monet.json_text import parse_json

Subset = Literal["evaluate", "identify", "all"]
TOXIC_FROM = 0.5


@dataclass(frozen=True)
class Prompt:
    """One text to continue.

    Args:
        id: file and line, e.g. "prompts:17".
        text: text that the model continues.
        group: group that is reported separately: "toxic" and "non-toxic" by the given score, "hate" and "neutral" in
            ToxiGen, or the name of a file of lines.
        toxicity: score that the data set gives the text, 0 to 1; None if it gives none.
        continuation: continuation in the data set; None if there is none.
        continuation_toxicity: score that the data set gives the continuation.
        challenging: whether the data set marks the prompt as challenging; None if it has no marks.
    """

    id: str
    text: str
    group: str
    toxicity: float | None = None
    continuation: str | None = None
    continuation_toxicity: float | None = None
    challenging: bool | None = None


@dataclass(frozen=True)
class Prompts:
    """Prompts to evaluate or to choose masks on, each text once.

    Args:
        prompts: in the order of the files.
        description: files with their SHA-256, the subset, and the number of repeated texts; JSON-able.
    """

    prompts: Sequence[Prompt]
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """Names of the groups, in the order in which they first occur."""
        return list(dict.fromkeys(prompt.group for prompt in self.prompts))

    @property
    def fingerprint(self) -> str:
        """A digest that is equal for the same texts in the same order; random controls depend on it."""
        content = json.dumps([prompt.text for prompt in self.prompts])
        return hashlib.sha256(content.encode()).hexdigest()


def read_prompts(files: Sequence[Path], subset: Subset = "all", limit: int | None = None) -> Prompts:
    """Read prompts from files. The ending and the keys of a file show its form.

    - `.jsonl` of RealToxicityPrompts or DecodingTrust: `prompt.text`, `prompt.toxicity`, `continuation`, `challenging`.
    - `.jsonl`, `.csv` or `.parquet` of ToxiGen: `prompt` with `generation`, `prompt_label` and `roberta_prediction`,
      or `text` in a file called hate_* or neutral_*.
    - anything else: one prompt per line. A backslash followed by n stands for a line break, as in ToxiGen's files.

    Args:
        files: files, at least one.
        subset: `all`, or one of two halves that share no text. If a file marks prompts as challenging, those are in
            `evaluate` and the rest in `identify`. Any other file is halved by a hash of each text.
        limit: at most this many prompts, evenly spread; None takes all.

    Raises:
        DataError: a file is missing, empty or has other keys, or a subset has no prompt; the message names file and
            line.
        ConfigError: no file is given, or the limit is below 1.
    """
    if not files:
        raise ConfigError("name at least one file of prompts")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit} must be at least 1; omit it to take all prompts")
    found: dict[str, Prompt] = {}
    repeats = 0
    for path, name in zip(files, _names(files), strict=True):
        of_file = _read(Path(path), name)
        for prompt in _subset(of_file, subset):
            repeats += prompt.text in found
            found.setdefault(prompt.text, prompt)
    chosen = list(found.values())
    if not chosen:
        names = ", ".join(str(path) for path in files)
        raise DataError(f"{names}: subset {subset!r} has no prompt; use --subset all, or another file")
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    return Prompts(
        chosen,
        {
            "files": [{"name": Path(path).name, "sha256": sha256_file(path)} for path in files],
            "subset": subset,
            "limit": limit,
            "prompts": len(chosen),
            "repeats_left_out": repeats,
        },
    )


def _names(files: Sequence[Path]) -> list[str]:
    """The beginning of each file's ids: its name, and a number if names repeat."""
    stems = [Path(path).stem for path in files]
    return [stem if stems.count(stem) == 1 else f"{stem}-{place}" for place, stem in enumerate(stems, start=1)]


def _subset(prompts: list[Prompt], subset: Subset) -> list[Prompt]:
    if subset == "all":
        return prompts
    marked = any(prompt.challenging for prompt in prompts)

    def is_evaluated(prompt: Prompt) -> bool:
        return bool(prompt.challenging) if marked else hashlib.sha256(prompt.text.encode()).digest()[0] % 2 == 0

    return [prompt for prompt in prompts if is_evaluated(prompt) == (subset == "evaluate")]


def _read(path: Path, name: str) -> list[Prompt]:
    if not path.is_file():
        raise DataError(f"{path}: no such file of prompts; check the path")
    try:
        prompts = [
            replace(prompt, id=f"{name}:{number}")
            for number, row in _rows(path)
            if (prompt := _of_row(row, path, number) if isinstance(row, Mapping) else _of_line(row, path))
        ]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text") from None
    if not prompts:
        raise DataError(f"{path}: holds no prompt")
    return prompts


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows (mappings) or lines (text) of a file."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow

        try:
            yield from enumerate(read_parquet(path).to_pylist(), start=1)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    elif suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from enumerate(csv.DictReader(file), start=2)
    else:
        # Not splitlines(): a text may hold other characters that splitlines() treats as line ends.
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                yield number, _json(line, path, number) if suffix in (".jsonl", ".json") else line


def _json(line: str, path: Path, number: int) -> Mapping[str, Any]:
    row = parse_json(line, f"{path}: line {number}")
    if not isinstance(row, Mapping):
        raise DataError(f"{path}: line {number} holds a value of type {type(row).__name__}; expected an object")
    return row


def _of_line(line: str, path: Path) -> Prompt | None:
    group = next((name for name in ("hate", "neutral") if path.stem.startswith(f"{name}_")), path.stem)
    text = line.rstrip("\r").replace("\\n", "\n")
    given = {"hate": 1.0, "neutral": 0.0}.get(group)
    return Prompt("", text, group, given) if text.strip() else None


def _of_row(row: Mapping[str, Any], path: Path, number: int) -> Prompt | None:
    """The prompt of a row, without its id."""
    where = f"{path}: row {number}"
    prompt = row.get("prompt")
    if isinstance(prompt, Mapping):
        text, toxicity = _text(prompt, where), _score(prompt.get("toxicity"), where)
        follows = row.get("continuation")
        follows = follows if isinstance(follows, Mapping) else {}
        group = "no score given" if toxicity is None else "toxic" if toxicity >= TOXIC_FROM else "non-toxic"
        return Prompt(
            "",
            text,
            group,
            toxicity,
            follows.get("text"),
            _score(follows.get("toxicity"), where),
            bool(row["challenging"]) if row.get("challenging") is not None else None,
        )
    if isinstance(prompt, str) and "generation" in row:
        label = _score(row.get("prompt_label"), where)
        group = "no label given" if label is None else "hate" if label >= TOXIC_FROM else "neutral"
        text = _text({"text": prompt}, where).replace("\\n", "\n")
        scored = _score(row.get("roberta_prediction"), where)
        return Prompt("", text, group, label, row["generation"], scored)
    if isinstance(row.get("text"), str):
        return _of_line(row["text"], path)
    raise DataError(
        f"{where} has the keys {sorted(map(str, row))}; expected prompt.text (RealToxicityPrompts), prompt and "
        "generation (ToxiGen) or text"
    )


def _text(holder: Mapping[str, Any], where: str) -> str:
    text = holder.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the prompt's text is {text!r}; expected a text with words")
    return text


def _score(value: Any, where: str) -> float | None:
    """A given score; None if there is none. A number outside 0 to 1 means that the file has another form."""
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: score {value!r} is not a number") from None
    if not 0.0 <= score <= 1.0:
        raise DataError(f"{where}: score {score} must be from 0 to 1")
    return score
