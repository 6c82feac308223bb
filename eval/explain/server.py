"""An OpenAI-compatible server that explains, judges or makes vectors. Answers are kept, and never asked for twice."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monet.errors import ConfigError
from monet.eval.core import web
from monet.eval.core.store import ExampleStore
from monet.eval.core.web import Fault, Limits, Service
from monet.eval.explain import prompts
from monet.eval.explain.embedders import normed
from monet.eval.explain.excerpts import Excerpt
from monet.eval.explain.explainers import Named
from monet.eval.explain.judges import Question
from monet.eval.index.units import Unit
from monet.options import Options

KEY_VARIABLE = "MONET_API_KEY"
# Excerpts of one question, and texts of one request for vectors.
EXCERPTS = 5
TEXTS = 16


@dataclass(frozen=True)
class ServerOptions(Options):
    """The server that explains or judges.

    Args:
        base_url: address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1. It must be https, or on this
            machine. A key is read from the environment variable MONET_API_KEY only.
        server_model: name of the model there.
        max_tokens: longest answer.
        requests_per_second: at most this many requests start each second.
        attempts: how often one request is sent after faults before it counts as failed.
        timeout_seconds: time limit for one answer.
        max_requests: stop before more requests than this; the same command continues. If omitted, there is no limit.
    """

    base_url: str | None = None
    server_model: str | None = None
    max_tokens: int = 512
    requests_per_second: float = 4.0
    attempts: int = 6
    timeout_seconds: float = 120.0
    max_requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "requests_per_second", "attempts", "timeout_seconds", "max_requests"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be more than 0, got {value}")


class Server:
    """A server and its kept answers, as a context manager.

    Args:
        options: address, model and limits.
        folder: folder of the kept answers.
        run: name of the run, which has its own file of answers.
        first_wait_seconds: wait before the second attempt.

    Attributes:
        name: name of the model.
        sent: number of requests, apart from repeats.

    Raises:
        ConfigError: address or model are missing, or the address is neither https nor on this machine.
    """

    def __init__(self, options: ServerOptions, folder: Path, run: str, first_wait_seconds: float = 1.0) -> None:
        if options.base_url is None or options.server_model is None:
            raise ConfigError("a server needs --base_url and --server_model")
        web.check_url(options.base_url, "base_url")
        key = web.key_of(KEY_VARIABLE)
        self._url = options.base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._options = options
        self._limits = Limits(
            options.requests_per_second, options.attempts, options.timeout_seconds, first_wait_seconds
        )
        self.name = options.server_model
        self.sent = 0
        self._store = ExampleStore(folder, {**self.key, "run": run})

    @property
    def host(self) -> str:
        """Name of the host."""
        return urllib.parse.urlsplit(self._url).hostname or ""

    @property
    def key(self) -> dict[str, Any]:
        """Host and model, without secrets."""
        return {"host": self.host, "model": self.name, "max_tokens": self._options.max_tokens}

    @property
    def at_once(self) -> int:
        """Number of requests that run at the same time."""
        return self._limits.at_once

    def __enter__(self) -> Server:
        self._store.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._store.__exit__(*error)

    def chat(self, asked: Sequence[prompts.Messages]) -> list[str | Fault]:
        """The answer to each prompt, at temperature 0.

        Raises:
            ConfigError: the server refuses the key or does not answer any more, or `max_requests` is reached. Answers
                until then are kept.
        """
        bodies = [
            {"model": self.name, "messages": one, "temperature": 0, "max_tokens": self._options.max_tokens}
            for one in asked
        ]
        return self._ask("chat/completions", bodies, _answer_in)

    def vectors(self, texts: Sequence[str]) -> list[list[list[float]] | Fault]:
        """The vectors of each `TEXTS` texts. Errors are as for `chat`."""
        few = [list(texts[start : start + TEXTS]) for start in range(0, len(texts), TEXTS)]
        bodies = [{"model": self.name, "input": [text or " " for text in some]} for some in few]
        return self._ask("embeddings", bodies, _vectors_in)

    def _ask(self, path: str, bodies: Sequence[Any], read: Callable[[Any], Any]) -> list[Any]:
        names = [_name(path, body) for body in bodies]
        todo = {name: body for name, body in zip(names, bodies, strict=True) if name not in self._store}
        most = self._options.max_requests
        if most is not None and self.sent + len(todo) > most:
            raise ConfigError(
                f"max_requests {most} would be exceeded; finished lines are kept, and the same command continues"
            )
        self.sent += len(todo)
        waiting = list(todo)

        def keep(place: int, outcome: Any) -> None:
            if not isinstance(outcome, Fault):
                self._store.put(waiting[place], outcome)

        service: Service[Any] = Service(f"{self._url}/{path}", self._headers, self._limits, read, self._refusal)
        outcomes = dict(zip(waiting, service.ask(list(todo.values()), keep), strict=True))
        if fault := next((one for one in outcomes.values() if isinstance(one, Fault) and one.down), None):
            raise ConfigError(
                f"{self.host} does not answer ({fault.reason} {fault.detail}); finished lines are kept, and the same "
                "command continues"
            )
        return [self._store[name] if name in self._store else outcomes[name] for name in names]

    def _refusal(self, error: urllib.error.HTTPError) -> Fault:
        if error.code in (401, 403):
            given = f"the key of {KEY_VARIABLE}" if self._headers else f"requests without a key; set {KEY_VARIABLE}"
            raise ConfigError(f"{self.host} refuses {given} (status {error.code}); finished lines are kept")
        if error.code == 404:
            raise ConfigError(
                f"{self.host} knows no such address or model (status 404); check --base_url and --server_model"
            )
        return Fault("refused", f"status {error.code}")


def _name(path: str, body: Any) -> str:
    return hashlib.sha256(json.dumps([path, body], sort_keys=True).encode()).hexdigest()


def _answer_in(answer: Any) -> str | Fault:
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, TypeError, IndexError):
        content = None
    return content if isinstance(content, str) else Fault("no answer", "the answer holds no text")


def _vectors_in(answer: Any) -> list[list[float]] | Fault:
    try:
        found = [[float(number) for number in one["embedding"]] for one in answer["data"]]
    except (KeyError, TypeError, ValueError):
        found = []
    fits = found and found[0] and len({len(one) for one in found}) == 1 and np.isfinite(found).all()
    return found if fits else Fault("no answer", "the answer holds no vectors")


class ServerExplainer:
    """Explanations by a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.model = server.name
        self.at_once = 4 * server.at_once
        self.key: dict[str, Any] = {"explainer": "server", **server.key}

    def explain(self, units: Sequence[tuple[Unit, list[Excerpt]]]) -> list[Named]:
        """See `Explainer.explain`; an answer that cannot be read is no explanation."""
        found = []
        for answer in self._server.chat([prompts.explaining(excerpts) for _, excerpts in units]):
            text = "" if isinstance(answer, Fault) else prompts.explanation_in(answer)
            reason = answer.reason if isinstance(answer, Fault) else "no explanation in the answer"
            found.append(Named(text, "" if text else reason))
        return found


class ServerJudge:
    """Answers by a server: up to five excerpts of one explanation in a question."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.at_once = max(1, server.at_once // 2)
        self.key: dict[str, Any] = {"judge": "server", **server.key}

    def accepted(self, questions: Sequence[Question]) -> list[list[bool | None]]:
        """See `Judge.accepted`; all excerpts of an answer that cannot be read have none."""
        parts = [
            (number, question.excerpts[start : start + EXCERPTS])
            for number, question in enumerate(questions)
            for start in range(0, len(question.excerpts), EXCERPTS)
        ]
        asked = [prompts.detecting(questions[n].explanation, some, questions[n].marked) for n, some in parts]
        found: list[list[bool | None]] = [[] for _ in questions]
        for (number, some), answer in zip(parts, self._server.chat(asked), strict=True):
            read = None if isinstance(answer, Fault) else prompts.list_in(answer, len(some))
            found[number] += [None] * len(some) if read is None else read
        return found

    def odd(self, sets: Sequence[list[Excerpt]]) -> list[int | None]:
        """See `Judge.odd`."""
        answers = self._server.chat([prompts.finding_odd(excerpts) for excerpts in sets])
        return [
            None if isinstance(answer, Fault) else prompts.number_in(answer, len(excerpts))
            for excerpts, answer in zip(sets, answers, strict=True)
        ]


class ServerEmbedder:
    """Vectors by a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.at_once = 4 * server.at_once
        self.key: dict[str, Any] = {"embedder": "server", **server.key}

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See `Embedder.vectors`; texts of an answer without vectors, or with too few, are NaN.

        Raises:
            ConfigError: as for `Server.chat`, or the server's vectors have different lengths.
        """
        answers = self._server.vectors(texts)
        widths = {len(one) for answer in answers if not isinstance(answer, Fault) for one in answer}
        if len(widths) > 1:
            raise ConfigError(f"{self._server.host} answers with vectors of different lengths: {sorted(widths)}")
        found = np.full((len(texts), widths.pop() if widths else 1), np.nan)
        for number, answer in enumerate(answers):
            rows = found[number * TEXTS : (number + 1) * TEXTS]
            if not isinstance(answer, Fault) and len(answer) == len(rows):
                rows[:] = answer
        return normed(found)
