"""Read text with scores, one record for each line, for correlations of experts with a score.

A record is a JSON object with `text` or `input_ids`, and with `score` (the score of each token) or `token_scores` (one
number for each token). `label`, `id` and `prompt_hash` are optional. `prompt_hash` is the hash of the text's prompt,
see `monet.eval.attribution.statistics.prompt_hashes`. A record whose score is null was not scored: it is left out and
counted.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monet.errors import ConfigError, DataError
from monet.eval.attribution.statistics.prompt_hashes import KEY, is_hash, packed
from monet.eval.core.inputs import LabelledSequences
from monet.files import sha256_file
from monet.json_text import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLABELLED = "scored"


def read_scored(path: Path, tokenizer: PreTrainedTokenizerBase | None, seq_len: int) -> LabelledSequences:
    """Read records as labelled sequences with a score for every token.

    Longer texts are cut into pieces of `seq_len`. Each piece is a separate sequence.

    Args:
        path: a file of JSON lines; empty lines are skipped.
        tokenizer: tokenizer of the model, for records with `text`; None if there is none.
        seq_len: largest number of tokens of a sequence, at least 3.

    Returns:
        Sequences whose document is the record's `id`, or else its line number. Labels are in the order of the file;
        records without a label are labelled "scored". `notes` counts the records that were left out, by reason. If
        every record names its prompt, `notes` also has the set of the prompts' hashes.

    Raises:
        DataError: the file is missing, has no record with a score, or has an unreadable record; names the line.
        ConfigError: `seq_len` is below 3.
    """
    if seq_len < 3:
        raise ConfigError(f"seq_len {seq_len} must be at least 3 for scored text")
    labels: dict[str, int] = {}
    sequences: list[list[int]] = []
    label_of: list[int] = []
    scores: list[list[float]] = []
    documents: list[str] = []
    seen: set[str] = set()
    prompts: set[str | None] = set()
    counts = Counter({"records": 0, "unscored": 0, "too_short": 0, "cut": 0})
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot read the file of scored text ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parsed(line, f"{path}: line {number}")
        counts["records"] += 1
        name = str(record.get("id", number))
        if name in seen:
            raise DataError(f"{path}: line {number} repeats the id {name!r}; ids must be unique")
        seen.add(name)
        prompts.add(record.get("prompt_hash"))
        if "token_scores" not in record and record.get("score", 0) is None:
            counts["unscored"] += 1
            continue
        ids, token_scores = _tokens(record, tokenizer, f"{path}: line {number}")
        if len(ids) < 2:
            counts["too_short"] += 1
            continue
        counts["cut"] += len(ids) > seq_len
        for piece in _pieces(len(ids), seq_len):
            sequences.append(ids[piece])
            scores.append(token_scores[piece])
            documents.append(name)
            label_of.append(labels.setdefault(str(record.get("label", UNLABELLED)), len(labels)))
    if not sequences:
        raise DataError(f"{path}: no record with a score among {counts['records']}; a record has `text` and `score`")
    notes: dict[str, Any] = {"source": "scored", "file_sha256": sha256_file(path), "seq_len": seq_len, **counts}
    if None not in prompts:
        notes[KEY] = packed(hash for hash in prompts if hash is not None)
    return LabelledSequences(list(labels), sequences, label_of, scores=scores, documents=documents, notes=notes)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    record = parse_json(line, where)
    if not isinstance(record, dict) or ("text" in record) == ("input_ids" in record):
        raise DataError(f"{where}: a record must be an object with either `text` or `input_ids`")
    if ("score" in record) == ("token_scores" in record):
        raise DataError(f"{where}: a record must have either `score`, null if it was not scored, or `token_scores`")
    if "prompt_hash" in record and not is_hash(record["prompt_hash"]):
        raise DataError(
            f"{where}: prompt_hash {record['prompt_hash']!r:.40} is not the hash of a prompt (12 hexadecimal digits); "
            "leave it out, or write the file with `monet eval toxicity-scores`"
        )
    return record


def _tokens(
    record: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, where: str
) -> tuple[list[int], list[float]]:
    """Ids of a record, and a score for each id."""
    if "input_ids" in record:
        ids = record["input_ids"]
        if not isinstance(ids, list) or not all(type(entry) is int for entry in ids):
            raise DataError(f"{where}: input_ids must be a list of whole numbers")
    elif not isinstance(record["text"], str):
        raise DataError(f"{where}: text must be a string, got {record['text']!r:.40}")
    elif tokenizer is None:
        raise DataError(f"{where} has text, but the model's folder has no tokenizer; give input_ids instead")
    else:
        ids = list(tokenizer(record["text"], return_attention_mask=False)["input_ids"])  # pyright: ignore
    given = record.get("token_scores")
    if given is None:
        given = [record["score"]] * len(ids)
    for score in given if isinstance(given, list) else [given]:
        if type(score) not in (int, float) or not math.isfinite(score):
            raise DataError(f"{where}: a score must be a finite number, got {score!r}")
    if not isinstance(given, list) or len(given) != len(ids):
        found = len(given) if isinstance(given, list) else given
        raise DataError(f"{where}: {found} token_scores for {len(ids)} tokens; give input_ids, and a score for each id")
    return ids, list(map(float, given))


def _pieces(length: int, longest: int) -> list[slice]:
    """Consecutive slices of at most `longest` tokens and at least two."""
    starts = list(range(0, length, longest))
    if length - starts[-1] == 1 and len(starts) > 1:
        starts[-1] -= 1  # the last piece takes one token from the piece before it
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], length], strict=True)]
