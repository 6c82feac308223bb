"""One tokenising process of `encode`: it reads texts from standard input and writes ids to standard output.

Frames are little endian. The first frame is one JSON text {"tokenizer", "prefix", "eos_id"}. Each request holds the
number of texts, their lengths in bytes, and the texts in UTF-8. Each answer holds the same number, the token count of
every text, and all ids as uint32. If a text cannot be encoded, the answer holds the largest uint64, the index of the
text, and the length and UTF-8 of the reason. The process ends at the end of its input, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from monet.data.tokens.text_encoder import EncodeError, TextEncoder

_NO_IDS = (1 << 64) - 1


def send_texts(stream: BinaryIO, texts: list[bytes]) -> None:
    """Write one request, or the settings as a single text."""
    lengths = np.array([len(texts), *(len(text) for text in texts)], dtype="<u8")
    stream.write(b"".join([lengths.tobytes(), *texts]))
    stream.flush()


def receive_texts(stream: BinaryIO) -> list[bytes] | None:
    """Read what `send_texts` wrote; None at the end of the input."""
    if len(head := stream.read(8)) < 8:
        return None
    lengths = np.frombuffer(_exactly(stream, 8 * struct.unpack("<Q", head)[0]), dtype="<u8")
    return [_exactly(stream, int(length)) for length in lengths]


def send_ids(stream: BinaryIO, encoded: list[Any]) -> None:
    """Write one answer: a list of ids for each text."""
    lengths = np.array([len(encoded), *map(len, encoded)], dtype="<u8")
    ids = np.concatenate([np.asarray(ids, dtype="<u4") for ids in encoded]) if encoded else np.empty(0, "<u4")
    stream.write(lengths.tobytes())
    stream.write(ids.tobytes())
    stream.flush()


def send_error(stream: BinaryIO, index: int, reason: str) -> None:
    """Report that text number `index` cannot be encoded."""
    content = reason.encode("utf-8", "backslashreplace")
    stream.write(struct.pack("<QQQ", _NO_IDS, index, len(content)) + content)
    stream.flush()


def receive_ids(stream: BinaryIO) -> list[np.ndarray]:
    """Read what `send_ids` or `send_error` wrote.

    Raises:
        EOFError: the writer has ended.
        EncodeError: a text cannot be encoded.
    """
    (count,) = struct.unpack("<Q", _exactly(stream, 8))
    if count == _NO_IDS:
        index, size = struct.unpack("<QQ", _exactly(stream, 16))
        raise EncodeError(_exactly(stream, size).decode(), index)
    lengths = np.frombuffer(_exactly(stream, 8 * count), dtype="<u8").astype(np.int64)
    ids = np.frombuffer(_exactly(stream, 4 * int(lengths.sum())), dtype="<u4")
    return np.split(ids, np.cumsum(lengths)[:-1]) if count else []


def _exactly(stream: BinaryIO, size: int) -> bytes:
    if len(content := stream.read(size)) != size:
        raise EOFError
    return content


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles interrupts
    # output of other code must not mix with the frames
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    if (first := receive_texts(requests)) is None:
        return
    settings = json.loads(first[0])
    from tokenizers import Tokenizer

    encoder = TextEncoder(Tokenizer.from_str(settings["tokenizer"]), settings["prefix"], settings["eos_id"])
    while (texts := receive_texts(requests)) is not None:
        try:
            send_ids(answers, encoder.arrays([text.decode() for text in texts]))
        except EncodeError as error:
            send_error(answers, error.index, str(error))


if __name__ == "__main__":
    with suppress(EOFError, BrokenPipeError):  # the parent process has ended
        main()
