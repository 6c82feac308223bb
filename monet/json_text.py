"""Reads JSON from other people: any text is either read or refused with a Monet error."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any

from monet.errors import DataError, MonetError

MAX_DEPTH = 100
MAX_DIGITS = 100
MAX_FILE_BYTES = 1 << 30
_MAY_BE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: str | os.PathLike[str], refuse: type[MonetError] = DataError) -> Any:
    """The content of a UTF-8 file, parsed by `parse_json`.

    Raises:
        OSError: the file cannot be opened or read.
        MonetError: an error of type `refuse` that names the file: `parse_json` refused the text, or the file is a pipe
            or a device, or is larger than `MAX_FILE_BYTES`.
    """
    # Non-blocking, since a pipe without a writer would block the program without end.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE_BYTES:
            raise refuse(f"{path}: no JSON (not a file, or larger than {MAX_FILE_BYTES} bytes)")
        content = file.read(MAX_FILE_BYTES + 1)
    return parse_json(content, str(path), refuse)


def parse_json(text: str | bytes, where: str, refuse: type[MonetError] = DataError) -> Any:
    """Parse JSON into lists, dictionaries with text keys, text, numbers, booleans and None.

    Args:
        text: JSON; bytes are UTF-8.
        where: the origin of the text, for messages: a file, or a file and line.
        refuse: type of the error; it must be a ValueError too.
    Raises:
        MonetError: an error of type `refuse`; the text is not JSON, nests deeper than `MAX_DEPTH`, or contains half of
            a surrogate pair or a whole number of more than `MAX_DIGITS` digits.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        content = json.loads(text, parse_int=_whole_number)
        if text.count("[") + text.count("{") > MAX_DEPTH or _MAY_BE_SURROGATE.search(text):
            _check(content)
    except RecursionError:
        raise refuse(f"{where}: no JSON (nested deeper than {MAX_DEPTH} levels)") from None
    except ValueError as error:
        raise refuse(f"{where}: no JSON ({' '.join(str(error).split())[:300]})") from None
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check(content: Any) -> None:
    level = [content]
    for depth in range(MAX_DEPTH + 1):
        inner = []
        if depth == MAX_DEPTH and any(isinstance(value, (dict, list)) for value in level):
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                for key in value:
                    _check_text(key)
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return
        level = inner


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"character {error.start} of a text is half of a surrogate pair") from None
