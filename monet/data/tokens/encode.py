"""Encodes batches of texts as batches of ids, in order, in one process or several."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from monet.data.tokens.encode_worker import receive_ids, send_texts
from monet.data.tokens.text_encoder import EncodeError
from monet.data.tokens.tokenizer import Encoder
from monet.errors import DataError

_AHEAD = 2  # waiting batches per process
_GRACE_SECONDS = 5.0
Batch = TypeVar("Batch")
Ids = list[np.ndarray]


@contextmanager
def encoding(
    encoder: Encoder, processes: int
) -> Iterator[Callable[[Iterable[tuple[list[bytes], Batch]]], Iterator[tuple[Batch, Ids]]]]:
    """Yield a function from batches (UTF-8 texts, anything) to (anything, ids of each text), in the same order.

    "Anything" has a method `name_of(index)` that names a text in errors.

    The ids do not depend on the number of processes. Only a few batches for each process are in memory.

    Args:
        encoder: the encoder to use.
        processes: 1 encodes in this process, with one thread per core; more start this number of single-threaded
            processes.
    Raises:
        DataError: a text cannot be encoded, or a process ended early; the other processes are ended too.
    """
    if processes == 1:
        yield lambda batches: ((batch, _named(batch, _encode_here, encoder, texts)) for texts, batch in batches)
        return
    workers = [Worker(encoder) for _ in range(processes)]
    pool = ThreadPoolExecutor(processes)
    try:
        yield lambda batches: _in_order(pool, workers, batches)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()
        pool.shutdown()


def _encode_here(encoder: Encoder, texts: list[bytes]) -> Ids:
    return encoder.arrays([text.decode() for text in texts])


def _in_order(
    pool: ThreadPoolExecutor, workers: list[Worker], batches: Iterable[tuple[list[bytes], Batch]]
) -> Iterator[tuple[Batch, Ids]]:
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def encode(texts: list[bytes]) -> Ids:
        worker = idle.get()
        try:
            return worker(texts)
        finally:
            idle.put(worker)

    waiting: deque[tuple[Any, Future[Ids]]] = deque()
    for texts, batch in batches:
        waiting.append((batch, pool.submit(encode, texts)))
        if len(waiting) > _AHEAD * len(workers):
            done, future = waiting.popleft()
            yield done, _named(done, future.result)
    for done, future in waiting:
        yield done, _named(done, future.result)


def _named(batch: Any, work: Callable[..., Ids], *arguments: Any) -> Ids:
    """Return the result of `work`; if a text cannot be encoded, the error names its document."""
    try:
        return work(*arguments)
    except EncodeError as error:
        raise DataError(f"{batch.name_of(error.index)}: {error}") from None


class Worker:
    """A process of `encode_worker`, started as a subprocess: multiprocessing would import the user's main module."""

    def __init__(self, encoder: Encoder) -> None:
        # one thread per process; the same import path as here
        environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "monet.data.tokens.encode_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
        )
        settings = {"tokenizer": encoder.backend.to_str(), "prefix": encoder.prefix, "eos_id": encoder.eos_id}
        self._exchange(lambda requests, _: send_texts(requests, [json.dumps(settings).encode()]))

    def __call__(self, texts: list[bytes]) -> Ids:
        def exchange(requests: Any, answers: Any) -> Ids:
            send_texts(requests, texts)
            return receive_ids(answers)

        return self._exchange(exchange)

    def _exchange(self, exchange: Callable[[Any, Any], Any]) -> Any:
        try:
            return exchange(self._process.stdin, self._process.stdout)
        except EncodeError:
            raise
        except (EOFError, BrokenPipeError, ValueError):  # ValueError: this process closed the pipe in the meantime
            try:
                status: object = self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                status = "unknown"
            raise DataError(
                f"tokenising process {self._process.pid} ended early with status {status} (a negative status is the "
                "number of a signal; -9 is often a lack of memory). Finished work is kept: run the same command again, "
                "with fewer --processes if memory was short"
            ) from None

    def close(self) -> None:
        """End the process, immediately if it is still working."""

        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass
